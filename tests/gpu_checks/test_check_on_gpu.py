"""`check_on_gpu` without a server: a dry run where the core alone is installed, and what it makes of faults."""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from checkout import on_path

from configuration_plt import PLTConfig
from measuring_plt import device_bytes
from measuring_plt.models import empty_model
from measuring_plt.rows import PLAIN
from modeling_plt import PLTForCausalLM
from serving_plt.vllm import check_on_gpu, process_group, timed_engine
from serving_plt.vllm.gpu_checks import agreement, environment, flash, memory, ratios, served_latency, tokens
from serving_plt.vllm.gpu_checks.agreement import Answer, compare
from serving_plt.vllm.gpu_checks.checked_model import INITIALIZER_RANGE
from serving_plt.vllm.gpu_checks.parts import PARTS, Part
from serving_plt.vllm.gpu_checks.report import write_report
from serving_plt.vllm.gpu_checks.row import Row, failed, tried
from serving_plt.vllm.gpu_checks.scale import DRY, FULL
from serving_plt.vllm.gpu_checks.timed import setup_of

EXTRAS = ("accelerate", "cpuinfo", "datasets", "matplotlib", "pandas", "peft", "scipy", "seaborn", "tabulate", "vllm")
WITHOUT_EXTRAS = f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS}))\n"  # Python imports `sitecustomize` first
GPU = torch.device("cuda")
FULL_SETUP = setup_of(FULL)


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """What all of it writes where there is nothing but the core."""
    folder = tmp_path_factory.mktemp("dry")
    (folder / "sitecustomize.py").write_text(WITHOUT_EXTRAS)
    command = [sys.executable, "-m", "serving_plt.vllm.check_on_gpu", "--dry-run", "--output", folder / "out"]
    settings = {"PYTHONPATH": on_path(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def report(dry_run):
    return json.loads((dry_run / "check_on_gpu.json").read_text())


@pytest.mark.slow
@pytest.mark.compile
def test_a_dry_run_needs_the_core_alone_and_has_rows_of_every_part(report):
    assert report["parts"] == list(PARTS) == list(report["seconds"]) == list(report["logs"])
    results = {name: {row["result"] for row in report["rows"] if row["part"] == name} for name in PARTS}
    right = dict.fromkeys(PARTS, {"measured"}) | dict.fromkeys(("tokens", "flash"), {"equal"})
    with_vllm = [name for name in PARTS if name.startswith("vllm-")]
    assert results == right | dict.fromkeys(with_vllm, {"not installed"})
    assert {"device", "torch", "transformers", "vllm", "flash-attn", "package", "commit"} <= set(report["environment"])


@pytest.mark.slow
@pytest.mark.compile
def test_a_dry_run_compares_every_token_and_measures_every_point(report):
    figures = {row["check"]: row["figures"] for row in report["rows"]}
    total = len(DRY.prompts) * DRY.new_tokens
    compared = [one["tokens compared"] for one in figures.values() if "tokens compared" in one]
    assert compared == [f"{total} of {total}"] * (len(tokens.WAYS) + 1)
    (skipped,) = [
        one["CUDA graphs skipped"] for check, one in figures.items() if "as the CPU's" in check and "CUDA" in check
    ]
    assert skipped == 1  # there are none on a CPU, and the row says so
    measured = [one for one in figures.values() if "plain, ms" in one]
    assert len(measured) == 2 * len(DRY.batches) + len(DRY.prompt_lengths)
    assert all(one[name] > 0 for one in measured for name in ("plain, ms", "plt-2 / plain", "loop-2 / plain"))
    memory = [one for one in figures.values() if "load, MB" in one]
    assert len(memory) == 3 and all(one["decode, MB"] >= one["prefill, MB"] >= one["load, MB"] > 0 for one in memory)


@pytest.mark.slow
@pytest.mark.compile
def test_a_compiled_step_is_compiled_once_for_each_row(report):
    (graphs,) = [row["figures"] for row in report["rows"] if "decode step" in row["check"] and "CUDA" in row["check"]]
    assert graphs["CUDA graphs skipped"] == 3


@pytest.mark.slow
@pytest.mark.compile
def test_the_table_has_a_line_for_each_row_and_nothing_else_is_left(dry_run, report):
    written = (dry_run / "check_on_gpu.md").read_text().splitlines()
    lines = [line.split(" | ")[:3] for line in written if line.startswith("| ")][1:]
    assert lines == [[f"| {row['part']}", row["check"], row["result"]] for row in report["rows"]]
    assert {file.name for file in dry_run.iterdir()} == {"check_on_gpu.json", "check_on_gpu.md"}


PLANTED = {
    "fails": "def rows(scale):\n    yield Row('first', 'measured')\n    raise ValueError('one\\ntwo')\n",
    "crashes": "def rows(scale):\n    yield Row('first', 'equal')\n    os.kill(os.getpid(), 9)\n",
    "hangs": "def rows(scale):\n    child = subprocess.Popen(['sleep', '60'])\n"
    "    yield Row('first', 'measured', {'pid': child.pid})\n    time.sleep(60)\n",
    "environment": "def rows(scale):\n    yield Row('environment', 'measured', {'device': 'x'})\n",
    "stays": "def rows(scale):\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "    yield Row('first', 'measured', {'pid': os.getpid()})\n    time.sleep(60)\n",
    "reads": "def rows(scale):\n    seen = json.loads(open(os.environ['REPORT']).read())\n"
    "    yield Row('seen', 'measured', {'rows': len(seen['rows'])})\n",
}


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Parts that go wrong, in place of the real ones."""
    head = "import json, os, signal, subprocess, time\nfrom serving_plt.vllm.gpu_checks.row import Row\n"
    for name, code in PLANTED.items():
        (tmp_path / f"planted_{name}.py").write_text(head + code)
    parts = {name: Part(f"planted_{name}") for name in PLANTED}
    monkeypatch.setattr(check_on_gpu, "PARTS", parts | {"absent": Part("planted_fails", needs="no_such_package")})
    monkeypatch.setenv("PYTHONPATH", on_path(tmp_path))
    monkeypatch.setenv("REPORT", str(tmp_path / "out/check_on_gpu.json"))
    monkeypatch.setattr(check_on_gpu, "ENVIRONMENT", Part("planted_environment"))
    return tmp_path / "out"


def check(folder, *arguments):
    """The lines of a run of planted parts."""
    with pytest.raises(SystemExit) as end:
        check_on_gpu.main(["--dry-run", "--output", str(folder), *arguments])
    assert end.value.code == 1
    rows = json.loads((folder / "check_on_gpu.json").read_text())["rows"]
    return [(row["part"], row["check"], row["result"]) for row in rows], [row["figures"] for row in rows]


def is_gone(pid: int) -> bool:
    """Whether a process has ended, if only its parent has not asked for its status yet."""
    time.sleep(0.1)
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return state.stdout.strip()[:1] in ("", "Z")


@pytest.mark.slow
def test_what_fails_crashes_or_is_absent_is_a_row_and_the_next_part_goes_on(planted):
    rows, figures = check(planted, "--parts", "fails,crashes,absent,reads")
    assert rows == [
        ("fails", "first", "measured"),
        ("fails", "what is not above", "failed"),
        ("crashes", "first", "equal"),
        ("crashes", "what is not above", "failed"),
        ("absent", "all of this part", "not installed"),
        ("reads", "seen", "measured"),
    ]
    assert figures[1] == {"error": "two"}
    assert figures[3] == {"error": "The process ended with SIGKILL."}
    assert figures[5] == {"rows": 5}  # the files are written after each part
    logs = json.loads((planted / "check_on_gpu.json").read_text())["logs"]
    assert logs["fails"][-2:] == ["ValueError: one", "two"]


@pytest.mark.slow
def test_what_takes_too_long_is_a_row_and_nothing_that_it_started_is_left(planted):
    started = time.monotonic()
    check_on_gpu.main(["--dry-run", "--output", str(planted), "--parts", "hangs", "--minutes", "0.05"])
    assert time.monotonic() - started < 50
    first, second = json.loads((planted / "check_on_gpu.json").read_text())["rows"]
    assert second["result"] == "did not fit" and second["figures"] == {"error": "It took more than 0.05 minutes."}
    assert is_gone(first["figures"]["pid"])


@pytest.mark.slow
def test_what_does_not_listen_is_ended_too(planted, monkeypatch):
    monkeypatch.setattr(process_group, "GRACE", 1)
    started = time.monotonic()
    check_on_gpu.main(["--dry-run", "--output", str(planted), "--parts", "stays,reads", "--minutes", "0.05"])
    assert time.monotonic() - started < 50
    rows = json.loads((planted / "check_on_gpu.json").read_text())["rows"]
    assert [row["result"] for row in rows] == ["measured", "did not fit", "measured"]
    assert is_gone(rows[0]["figures"]["pid"])


def test_the_environment_tells_no_secrets(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "1")
    (row,) = environment.rows(DRY)
    assert row.figures["VLLM_USE_FLASHINFER_SAMPLER"] == "1" and "secret" not in row.figures.values()


def test_an_interrupted_run_keeps_what_it_has(tmp_path, monkeypatch):
    def run_alone(part, folder, minutes, dry_run):
        if part == PARTS["latency"]:
            raise KeyboardInterrupt
        return [Row(part.module, "measured", {"device": "x"})], []

    monkeypatch.setattr(check_on_gpu, "run_alone", run_alone)
    with pytest.raises(KeyboardInterrupt):
        check_on_gpu.main(["--output", str(tmp_path)])
    report = json.loads((tmp_path / "check_on_gpu.json").read_text())
    before = list(PARTS)[: list(PARTS).index("latency")]
    assert list(report["seconds"]) == before and len(report["rows"]) == len(before) > 1


def test_a_file_is_written_beside_the_old_one_which_stays_until_then(tmp_path, monkeypatch):
    report = {"command": "", "environment": {}, "rows": [{"part": "a", "check": "b", "result": "c", "figures": {}}]}
    write_report(tmp_path, report)
    before = (tmp_path / "check_on_gpu.json").read_text()

    def full(*_):
        raise OSError("no space")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_report(tmp_path, report | {"rows": []})
    assert (tmp_path / "check_on_gpu.json").read_text() == before


def test_a_number_that_json_does_not_have_is_a_word(tmp_path):
    row = {"part": "a", "check": "b", "result": "differs", "figures": {"x": math.nan, "y": math.inf, "z": 0.5}}
    write_report(tmp_path, {"command": "", "environment": {}, "rows": [row]})
    found = json.loads((tmp_path / "check_on_gpu.json").read_text(), parse_constant=pytest.fail)
    assert found["rows"][0]["figures"] == {"x": "nan", "y": "inf", "z": 0.5}


@pytest.mark.parametrize("arguments", [["--parts", "tokens,speed"], ["--parts", ""]])
def test_an_unknown_part_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        check_on_gpu.main(arguments)
    last = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2
    assert f"must be some of {','.join(PARTS)}, got '{arguments[1].partition(',')[2]}'" in last


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_told_of_the_dry_run(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        check_on_gpu.main(["--output", str(tmp_path)])
    assert end.value.code == 1
    assert "finds no GPU here; `--dry-run` runs all of this on the CPU." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, timed_engine.TooLittleRoom])
def test_running_out_of_memory_is_not_a_fault(kind):
    row = tried("a check", lambda: (_ for _ in ()).throw(kind("2 GiB")))
    assert (row.result, row.figures) == ("did not fit", {"error": f"{kind.__module__}.{kind.__name__}: 2 GiB"})
    assert failed("a check", KeyError("b")).result == "failed"


FAULTS = {
    "a gate of 1/2": {"gate": 0.0},
    "a window that is one too long": {"sliding_window": 17},
    "a state that is a tenth too large": {"hidden_scale": 1.1 * INITIALIZER_RANGE},
    "no shift": {"loop_shift": False},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_wrong_tokens_are_a_row_that_differs(fault, monkeypatch):
    """With what the GPU computes exchanged for another model of the same weights."""

    def broken(model, *arguments):
        changes = model.config.to_dict() | {name: value for name, value in fault.items() if name != "gate"}
        other = PLTForCausalLM(PLTConfig(**changes)).eval()
        other.load_state_dict(model.state_dict())
        for name, parameter in other.named_parameters():
            if "plt_gate" in name and "gate" in fault:
                parameter.data.zero_()
        return answers(other, *arguments)

    answers = tokens.answers
    right = tokens.check_tokens("a check", DRY, None, DRY.looped["plt-2"])
    monkeypatch.setattr(tokens, "answers", broken)
    row = tokens.check_tokens("a check", DRY, None, DRY.looped["plt-2"])
    assert (right.result, row.result) == ("equal", "differs")
    assert row.figures["greatest difference of log probabilities"] > 10 * agreement.IN_FLOAT32


def answer(chosen: list[int], logprobs: list[list[float]]) -> Answer:
    every = torch.arange(len(logprobs[0]))
    return Answer(chosen, [every] * len(chosen), [torch.tensor(one) for one in logprobs])


SURE, TIE = [-0.1, -3.0, -5.0], [-0.9, -0.9005, -5.0]


@pytest.mark.parametrize(
    "expected, found, result, compared",
    [
        (answer([0, 0], [SURE, SURE]), answer([0, 0], [SURE, SURE]), "equal", "2 of 2"),
        (answer([0, 0], [TIE, SURE]), answer([1, 2], [TIE, TIE]), "equal", "1 of 2"),
        (answer([0, 0], [SURE, SURE]), answer([0, 1], [SURE, SURE]), "differs", "2 of 2"),
        (answer([0, 0], [SURE, SURE]), answer([0, 0], [SURE, TIE]), "differs", "2 of 2"),
        (answer([0], [SURE]), answer([0], [[math.nan] * 3]), "differs", "1 of 1"),
    ],
    ids=["equal", "a near tie", "another token", "other log probabilities", "no number"],
)
def test_tokens_are_compared_up_to_a_near_tie(expected, found, result, compared):
    row = compare("a check", [expected], [found], bound=1e-3)
    assert (row.result, row.figures["tokens compared"]) == (result, compared)


def test_only_some_log_probabilities_are_compared_where_a_server_tells_few():
    found = Answer([0], [torch.tensor([2, 0])], [torch.tensor([-5.0, -0.1])])
    assert compare("a check", [answer([0], [SURE])], [found], bound=1e-3).result == "equal"
    swapped = Answer([0], [torch.tensor([0, 2])], [torch.tensor([-5.0, -0.1])])
    assert compare("a check", [answer([0], [SURE])], [swapped], bound=1e-3).result == "differs"


def test_flash_attention_that_is_not_installed_is_a_row(monkeypatch):
    monkeypatch.setattr(flash, "find_spec", lambda name: None)
    (row,) = flash.rows(replace(DRY, attention="flash_attention_2"))
    assert (row.result, row.figures) == ("not installed", {"package": "flash-attn"})


def test_the_calls_of_a_gpu_are_made_in_one_place(monkeypatch):
    """With stubs: there is no GPU here. What they are called with is what torch's own signatures take."""
    called = []
    properties = SimpleNamespace(name="H200", major=9, minor=0, total_memory=141 * 10**9)
    stubs = {
        "max_memory_allocated": lambda device=None: called.append(("peak", device)) or 7,
        "reset_peak_memory_stats": lambda device=None: called.append(("reset", device)),
        "mem_get_info": lambda device=None: (5, 9),
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "get_device_properties": lambda device=None: properties,
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    device_bytes.forget_peak(GPU)
    assert (device_bytes.peak_bytes(GPU), device_bytes.free_bytes(GPU)) == (7, 5)
    assert called == [("reset", GPU), ("peak", GPU)]
    monkeypatch.setattr(environment.shutil, "which", lambda name: name)
    said = SimpleNamespace(stdout="550.54\n550.54\n")
    monkeypatch.setattr(environment.subprocess, "run", lambda *args, **settings: said)
    found = environment.device(GPU)
    assert found["device"] == "H200" and found["compute capability"] == "9.0" and found["memory"] == "141.0 GB"
    assert found["driver"] == "550.54" and found["GPUs"] == "2"


def test_what_is_timed_on_a_gpu_has_the_size_that_is_said():
    assert 1.2e9 < empty_model(FULL_SETUP, PLAIN).num_parameters() < 1.4e9
    assert FULL_SETUP.dtype == torch.bfloat16 and FULL_SETUP.device == GPU
    assert set(FULL.served_rows) <= set(timed_engine.ROWS)
    plan = timed_engine.Plan("1.3b", "bfloat16", FULL.served_batches, FULL.served_prompts, FULL.steps, eager=False)
    assert max([*FULL.served_prompts, *FULL.served_contexts]) < plan.longest_request


def test_a_ratio_is_the_median_of_ratios():
    rounds = [{"plain": 1.0, "plt-2": 1.0}, {"plain": 1.0, "plt-2": 4.0}, {"plain": 3.0, "plt-2": 9.0}]
    assert ratios.figures(rounds) == {"plain, ms": 1.0, "plt-2 / plain": 3.0}


def test_each_phase_has_a_peak_of_its_own(monkeypatch):
    calls = []
    monkeypatch.setattr(memory, "forget_peak", lambda device: calls.append("forget"))
    monkeypatch.setattr(memory, "peak_bytes", lambda device: calls.append("peak") or 1e6 * len(calls))
    row = memory.phases("a check", DRY, PLAIN, 8)
    assert row.figures == {"load, MB": 2, "prefill, MB": 4, "decode, MB": 6}
    assert calls == ["forget", "peak"] * 3


def test_tokens_are_compared_without_tf32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert next(tokens.rows(DRY)).result == "equal"
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


class Pool:
    """A process whose engine takes longer at each call."""

    def __init__(self, factor: float):
        self.factor, self.asked = factor, []

    def submit(self, function, *arguments):
        self.asked.append((function.__name__, *arguments))
        return SimpleNamespace(result=lambda: self.factor * len(self.asked))


def test_a_server_is_timed_at_every_point_and_rows_take_turns():
    pools = {"plain": Pool(1.0), "plt-2": Pool(1.5)}
    plan = timed_engine.Plan("tiny", "float32", [1, 4], [64], 2, True, contexts=(32, 4096))
    rows = list(served_latency.measured(plan, pools))
    points = [
        ("decode", 1, 2, 32),
        ("decode", 4, 2, 32),
        ("prefill", 64),
        ("decode", 1, 2, 4096),
        ("decode", 4, 2, 4096),
    ]
    each = 1 + served_latency.ROUNDS
    assert pools["plain"].asked == pools["plt-2"].asked == [point for point in points for _ in range(each)]
    assert [row.figures["plt-2 / plain"] for row in rows] == [1.5] * 5
    assert rows[0].figures["plain, ms"] == 3000  # the first round does not count


class Engine:
    """An engine whose cache holds so many requests at once; the others wait."""

    def __init__(self, room: int):
        self.room, self.names, self.aborted, self.vllm_config = room, [], [], SimpleNamespace()
        self.vllm_config.scheduler_config = SimpleNamespace(max_num_batched_tokens=64)

    def add_request(self, name, *_):
        self.names.append(name)

    def step(self):
        return [
            SimpleNamespace(request_id=name, outputs=[SimpleNamespace(token_ids=[1])])
            for name in self.names[: self.room]
        ]

    def abort_request(self, names):
        self.aborted, self.names = names, []

    def has_unfinished_requests(self):
        return bool(self.names)


@pytest.fixture
def adding(monkeypatch):
    """Adds requests to an `Engine`."""
    monkeypatch.setattr(
        timed_engine, "add", lambda name, length, tokens: timed_engine.ENGINES[0].llm_engine.add_request(name)
    )


def test_a_batch_is_prefilled_again_once_its_contexts_have_grown_by_an_eighth(adding, monkeypatch):
    engine = Engine(4)
    monkeypatch.setattr(timed_engine, "ENGINES", [SimpleNamespace(llm_engine=engine)])
    prefilled, admitted = [], timed_engine.admitted
    monkeypatch.setattr(timed_engine, "admitted", lambda *asked: prefilled.append(asked) or admitted(*asked))
    for context, calls in ((32, 2), (320, 21), (320, 1)):  # two steps warm up, and two count
        for _ in range(calls):
            timed_engine.decode(4, 2, context)
        assert timed_engine.grown(context, 2) == {32: 36, 320: 360}[context]
    timed_engine.decode(2, 2, 320)
    assert prefilled == [(4, 32, 4), (4, 32, 4), (4, 320, 40), (4, 320, 40), (4, 320, 40), (2, 320, 40)]
    assert engine.names == ["320-2-0", "320-2-1"]
    timed_engine.release()
    assert not engine.names


def test_the_cache_holds_all_tokens_of_the_largest_batch_in_every_loop():
    plan = timed_engine.Plan("0.3b", "bfloat16", [1, 32], [1024], 16, True, contexts=(32, 4096))
    # keys and values of 4 heads of 64 in 16 layers, two bytes each, of requests that grow by an eighth
    least = 2 * 4 * 64 * 16 * 2 * 32 * (4096 + 512)
    for row, loops in (("plain", 1), ("plt-3", 3)):
        assert loops * least < timed_engine.kv_bytes_needed(row, plan) < loops * 1.2 * least
    assert timed_engine.kv_bytes_needed("plain", replace(plan, contexts=(32,))) == 1 << 30


def test_a_batch_that_the_cache_does_not_hold_is_not_timed(adding, monkeypatch):
    for room, holds in ((4, True), (3, False)):
        engine = Engine(room)
        monkeypatch.setattr(timed_engine, "ENGINES", [SimpleNamespace(llm_engine=engine)])
        if holds:
            assert timed_engine.decode(4, 2, 32) > 0
        else:
            with pytest.raises(
                timed_engine.TooLittleRoom, match="must hold 4 requests at once, got no token of 1 of them"
            ):
                timed_engine.decode(4, 2, 32)
        assert len(engine.aborted) == 4 and not engine.names
    monkeypatch.setattr(timed_engine, "ENGINES", [SimpleNamespace(llm_engine=Engine(3))])
    timed_engine.ENGINES[0].llm_engine.names = list("abcd")
    with pytest.raises(timed_engine.TooLittleRoom, match="must hold 4 requests at once, got tokens of 3"):
        timed_engine.timed_step(4)
