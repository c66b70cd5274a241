"""`plt bench` measures what it says, and its files agree with each other; how fast anything is, is not tested."""

import itertools
import json
import re
import statistics
from pathlib import Path
from unittest.mock import Mock
from xml.etree import ElementTree

import pandas as pd
import pytest
import torch

from command_plt.main import main
from laboratory.costs.cache_bytes import measured, theory
from laboratory.costs.decode import measure_decoding
from laboratory.costs.many_tokens import training_step
from laboratory.costs.peak_memory import PHASES
from laboratory.plots import plot_loops_and_bound, plot_prefill
from laboratory.report import Section, cell, records, write, write_whole
from laboratory.setting import headline
from laboratory.timing import measure_rows
from measuring_plt.filled_cache import fill, new_cache
from measuring_plt.greedy import TOKENS, greedy_steps
from measuring_plt.models import Setup, SharedWeights, empty_model, random_ids, row_config
from measuring_plt.rows import LOOPED_ROWS, PLAIN, ROWS
from measuring_plt.sizes import SIZES
from measuring_plt.turns import WARMUP_ROUNDS, take_turns
from modeling_plt import PLTCache
from modeling_plt.packed import FORMS
from modeling_plt.packed_products import Float16Product

CPU = torch.device("cpu")
TINY = Setup(SIZES["tiny"], CPU, torch.float32, "sdpa")
PACKED = Setup(SIZES["tiny"], CPU, torch.float32, "sdpa", packed="float16")
SMALL = ("--size", "tiny", "--device", "cpu", "--threads", "1")
SWEEP = ("--batch-sizes", "1", "2", "--contexts", "6", "20", "--prompt-lengths", "8", "16", "--train-length", "8")
SECTIONS = {
    "decode": ["decode"],
    "prefill": ["prefill"],
    "score": ["score"],
    "train": ["train"],
    "memory": ["memory", "cache"],
    "loops": ["loops"],
}
FIGURES = {"prefill": "first_token_by_prompt", "cache": "cache_by_context", "loops": "latency_by_loops"}
TIME_LABELS = {
    "decode": "ms per token",
    "prefill": "ms to first token",
    "score": "ms to all logits",
    "train": "ms per step",
    "loops": "ms per token",
}
every_row = pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))


def run(*arguments):
    main(["bench", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `plt bench all` writes."""
    folder = tmp_path_factory.mktemp("bench")
    run("all", *SMALL, *SWEEP, "--rounds", 3, "--output", folder)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "all.json").read_text())


def test_all_writes_every_section_and_figure_and_nothing_else(folder, results):
    names = [name for sections in SECTIONS.values() for name in sections]
    assert sorted(results) == sorted(["setting", *names])
    figures = {f"{stem}.{suffix}" for stem in FIGURES.values() for suffix in ("png", "svg")}
    assert {path.name for path in folder.iterdir()} == {"all.json", "all.md"} | figures
    for stem in FIGURES.values():
        assert (folder / f"{stem}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert ElementTree.parse(folder / f"{stem}.svg").getroot().tag.endswith("svg")


def test_the_tables_hold_what_the_json_holds(folder, results):
    written = (folder / "all.md").read_text()
    for name, lines in results.items():
        if name == "setting":
            continue
        columns = [column for column, value in lines[0].items() if not isinstance(value, list)]
        for line in lines:
            cells = [cell(float("nan") if line[column] is None else line[column]) for column in columns]
            assert re.search(r" *\| *".join(["", *map(re.escape, cells), ""]), written), line
        assert re.search(r" *\| *".join(["", *map(re.escape, columns), ""]), written)


def test_every_row_is_measured_at_every_point(results):
    names = list(ROWS)
    points = {(batch, context) for batch in (1, 2) for context in (6, 20)}
    assert [record["row"] for record in results["decode"]] == names * 4
    assert {(record["batch"], record["context"]) for record in results["decode"]} == points
    for section in ("prefill", "score"):
        found = [(record["prompt"], record["row"]) for record in results[section]]
        assert found == [(n, r) for n in (8, 16) for r in names]
    assert [record["row"] for record in results["train"]] == names
    contexts = (6, 20, 512, 1024, 2048, 4608)
    assert [(record["context"], record["row"]) for record in results["cache"]] == [
        (n, r) for n in contexts for r in names
    ]
    phases = [name for name in PHASES if name != "packed weights"]
    assert [(record["phase"], record["row"]) for record in results["memory"]] == [
        (p, r) for p in phases for r in names
    ]
    expected = [(kind, loops) for kind in ("PLT", "vanilla loop") for loops in (1, 2, 3, 4)]
    assert [(record["kind"], record["loops"]) for record in results["loops"]] == expected
    assert {(record["batch"], record["context"]) for record in results["loops"]} == {(1, 6)}


@pytest.mark.parametrize("section", TIME_LABELS)
def test_times_and_ratios_follow_from_the_rounds(results, section):
    label = TIME_LABELS[section]
    plain = {}
    for record in results[section]:
        point = tuple(record.get(name) for name in ("batch", "context", "prompt", "tokens"))
        rounds = record[f"{label}, by round"]
        plain.setdefault(point, rounds)  # the first of a point is plain
        assert len(rounds) == 3
        assert (record["min"], record[label], record["max"]) == (min(rounds), statistics.median(rounds), max(rounds))
        ratios = [own / other for own, other in zip(rounds, plain[point], strict=True)]
        assert record["ratio to plain, by round"] == ratios
        assert record["ratio to plain"] == statistics.median(ratios)
        if record.get("row") == "plain" or record.get("loops") == 1:
            assert record["ratio to plain"] == 1


def test_passes_are_those_of_each_row(results):
    passes = {"loop-2": 2, "shift-2": 2, "shared-2": 2, "plt-2": 2, "plt-3": 3, "deep-2": 2}
    for section in ("decode", "prefill", "score", "train"):
        for record in results[section]:
            assert record["passes"] == passes.get(record["row"], 1)


def test_parallel_efficiency_is_time_in_turn_over_that_of_as_many_loops_together(results):
    rounds = {(record["kind"], record["loops"]): record["ms per token, by round"] for record in results["loops"]}
    for record in results["loops"]:
        num_loops, together = record["loops"], rounds["PLT", record["loops"]]
        in_turn = rounds["vanilla loop", num_loops]
        efficiency = statistics.median([a / (num_loops * b) for a, b in zip(in_turn, together, strict=True)])
        assert record["parallel efficiency"] == (pytest.approx(efficiency) if record["kind"] == "PLT" else None)
    assert results["loops"][0]["parallel efficiency"] == 1


def test_the_plot_of_loops_has_the_bound_and_the_efficiency(results):
    table = pd.DataFrame(results["loops"])
    axes = plot_loops_and_bound(table, "headline").axes[0]
    bound = next(line for line in axes.lines if line.get_label() == "PLT, bound")
    assert bound.get_xydata().tolist() == table[["loops", "bound, ms"]][:4].to_numpy().tolist()
    assert [text.get_text() for text in axes.texts] == [f"{value:.2f}" for value in table["parallel efficiency"][:4]]


@pytest.mark.parametrize("section", ["decode", "loops"])
def test_bounds_of_decoding_are_of_one_bandwidth_which_is_named(results, folder, section):
    bandwidth = results[section][0]["read, MB"] / results[section][0]["bound, ms"]
    assert f" {bandwidth:.1f} GB/s" in (folder / "all.md").read_text()
    for record in results[section]:
        assert record["read, MB"] / record["bound, ms"] == pytest.approx(bandwidth)
        assert record["bound / time"] == record["bound, ms"] / record["ms per token"]


@pytest.mark.parametrize(
    ("section", "value", "point"), [("cache", "bytes, measured", "context"), ("memory", "measured, MB", "phase")]
)
def test_ratios_of_bytes_are_to_plain_at_the_same_point(results, section, value, point):
    plain = {record[point]: record[value] for record in results[section] if record["row"] == "plain"}
    for record in results[section]:
        if plain[record[point]] > 0:  # a page, of which the smallest phases have none
            assert record["ratio to plain"] == pytest.approx(record[value] / plain[record[point]])


def test_cells_read_well():
    values = {float("nan"): "", "plain": "plain", 4608: "4608", 2.0: "2", 1.01367: "1.014", 12345.6: "12346"}
    assert [cell(value) for value in values] == list(values.values())


def test_json_keeps_every_digit_and_has_no_nan():
    table = pd.DataFrame({"a": [1, 2], "b": [1 / 3, float("nan")], "c": [[0.1], [0.2]]})
    assert json.dumps(records(table)) == json.dumps(
        [{"a": 1, "b": 1 / 3, "c": [0.1]}, {"a": 2, "b": None, "c": [0.2]}]
    )


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "new" / "table.md"
    write_whole(file, "old")
    monkeypatch.setattr(Path, "rename", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_whole(file, "new")
    assert file.read_text() == "old"


def test_published_ratios_stand_next_to_the_measured_ones(results):
    published = {record["row"]: record["published ratio"] for record in results["decode"]}
    expected = {"plain": 1, "loop-2": 9.4 / 4.8, "shift-2": 5.9 / 4.8, "shared-2": 1, "plt-2": 4.9 / 4.8}
    assert published == dict.fromkeys(ROWS) | expected
    published = {record["row"]: record["published ratio"] for record in results["cache"]}
    assert published == dict.fromkeys(ROWS) | {
        "plain": 1,
        "loop-2": 2,
        "shift-2": 2,
        "shared-2": 1,
        "plt-2": 284 / 280,
    }


def test_measured_cache_bytes_are_those_of_the_formula(results):
    for record in results["cache"]:
        assert record["bytes, measured"] == record["bytes, theory"], record
    by_row = {record["row"]: record["bytes, measured"] for record in results["cache"] if record["context"] == 4608}
    column = 2 * 2 * 1 * 32 * 4  # keys and values, layers, KV heads, head_dim, float32
    state = 64 * 4
    assert by_row == {
        "plain": column * 4608 + state + 8,
        "llama": column * 4608,
        "loop-2": column * 2 * 4608 + 2 * state + 8,
        "shift-2": column * 2 * 4608 + 2 * state + 8,
        "shared-2": column * 4608 + 2 * state + 8,
        "plt-2": column * (4608 + 7) + 2 * state + 8,
        "plt-3": column * (4608 + 2 * 7) + 3 * state + 8,
        "deep-2": 2 * column * 4608 + state + 8,
    }


def test_the_setting_is_stated(results, folder):
    setting = results["setting"]
    assert setting["command"].startswith("plt bench all --size tiny")
    assert setting["device"].endswith(f"({torch.backends.cpu.get_cpu_capability()})")
    assert setting["torch"] == torch.__version__ and setting["dtype"] == "float32" and setting["cpu_threads"] == 1
    text = (folder / "all.md").read_text()
    for value in ("parameters: 106816", "'sliding_window': 8", "eager", "warm-up", "synchronised", setting["device"]):
        assert value in text


@pytest.mark.parametrize("command", SECTIONS)
def test_each_command_alone(tmp_path, capsys, command):
    options = () if command == "loops" else ("--rows", "plt-2")
    run(command, *SMALL, *options, "--output", tmp_path / "new" / "folder")
    results = json.loads((tmp_path / f"new/folder/{command}.json").read_text())
    assert list(results) == ["setting", *SECTIONS[command]]
    printed, written = capsys.readouterr().out, (tmp_path / f"new/folder/{command}.md").read_text()
    assert written[written.index("##") :] in printed
    if command != "loops":
        names = {record["row"] for section in SECTIONS[command] for record in results[section]}
        assert names == {"plain", "plt-2"}, "plain is always in"


def test_a_command_with_changed_fields(tmp_path):
    fields = ("--set", "num_hidden_layers=1", "qk_norm=True", "--dtype", "bfloat16")
    run("prefill", *SMALL, "--prompt-lengths", "4", "--rows", "plain", "--output", tmp_path, *fields)
    setting = json.loads((tmp_path / "prefill.json").read_text())["setting"]
    assert (setting["fields"]["num_hidden_layers"], setting["fields"]["qk_norm"]) == (1, True)
    assert setting["dtype"] == "bfloat16"


def test_decoding_with_packed_weights_says_so(tmp_path):
    options = ("--pack", "int8", "--batch-sizes", 1, "--contexts", 8, "--rows", "plt-2")
    run("decode", *SMALL, *options, "--output", tmp_path)
    setting = json.loads((tmp_path / "decode.json").read_text())["setting"]
    assert setting["decoding"] == "dynamic cache, eager, packed weights (int8) but in llama"


def test_all_takes_packed_weights_and_trains_with_plain_ones(tmp_path):
    run("all", *SMALL, "--pack", "same", "--rows", "plt-2", "--rounds", 1, "--output", tmp_path)
    assert (tmp_path / "all.json").exists()


def test_every_weight_is_packed_once_for_all_rows(monkeypatch):
    packed = []
    monkeypatch.setitem(FORMS, torch.float16, lambda weight: packed.append(weight) or Float16Product(weight))
    weights = SharedWeights(PACKED)
    models = [weights.build_for_decoding(ROWS[name]) for name in ("plain", "loop-2", "plt-2", "deep-2")]
    assert len(packed) == 1 + 4 * 7, (
        "the head, and seven projections in each of deep-2's layers, two of which all share"
    )
    with pytest.raises(ValueError, match="while its weights are packed"):
        models[1].half()


def test_rows_share_what_is_packed_and_llama_stays_as_it_is():
    weights = SharedWeights(PACKED)
    models = {name: weights.build_for_decoding(ROWS[name]) for name in ("plain", "plt-2", "llama")}
    layers = [model.model.layers[1].mlp.up_proj for model in models.values()]
    assert layers[0].product is layers[1].product and isinstance(layers[0].product, Float16Product)
    assert type(layers[2]) is torch.nn.Linear
    with torch.no_grad():
        logits = [models[name](torch.arange(9)[None]).logits for name in ("plain", "llama")]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-3)  # weights of float16


POSITIVE = "must be an integer of at least 1"
DEVICE = "must be cpu, cuda or cuda:N"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sing", "No such command 'sing'"),
        ("", "Missing command"),
        ("all --size 7b", "must be one of tiny, 0.3b, 0.5b, 1.3b, 1.9b, 0.9b-a0.2b, got '7b'"),
        ("all --rows plt-2 plt-9", "deep-2, got 'plt-9'"),
        ("all --dtype int8", "got 'int8'"),
        ("all --attn-implementation fast", "got 'fast'"),
        ("all --contexts 8 0", f"{POSITIVE}, got '0'"),
        ("loops --context 0", f"{POSITIVE}, got '0'"),
        ("all --rounds many", f"{POSITIVE}, got 'many'"),
        ("all --device quantum", f"{DEVICE}, got 'quantum'"),
        ("all --device meta", f"{DEVICE}, got 'meta'"),
        ("all --device cuda:99", "GPUs here, got 'cuda:99'"),
        ("all --set loops=3", "takes FIELD=VALUE with a field of PLTConfig, got 'loops=3'"),
        ("all --set num_loops=3", "`--set` cannot change num_loops"),
        ("all --set hidden_size=65", "must be a multiple of `num_attention_heads`"),
        ("all --set hidden_size=big", "hidden_size"),
        ("all --set qk_norm=True", "leave the row llama out with `--rows`"),
        ("decode --size 0.9b-a0.2b --rows llama", "leave the row llama out with `--rows`"),
        ("products --size 0.9b-a0.2b", "must be one of tiny, 0.3b, 0.5b, 1.3b, 1.9b, got '0.9b-a0.2b'"),
        ("decode --prompt-lengths 8", "No such option: --prompt-lengths"),
        ("loops --rows plt-2", "No such option: --rows"),
        ("loops --context 8 16", "unexpected extra argument(s) (16)"),
        ("decode --pack int4", "must be one of same, float16, int8, got 'int4'"),
        (f"all --output {__file__}", "is a file"),
    ],
)
def test_wrong_arguments_are_refused(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        run(*arguments.split())
    output, code = capsys.readouterr(), error.value.code
    assert not output.out
    if isinstance(code, str):  # refused by what measures; Python prints it, and ends with status 1
        assert message in code and "\n" not in code
    else:
        assert code == 2 and message in output.err and output.err.count("\n") == 1 and " --help`." in output.err
    assert not list(tmp_path.iterdir())


def test_rows_take_turns_and_the_warmup_does_not_count():
    now, calls = [0.0], []

    def sample(name, seconds):
        def call():
            calls.append(name)
            # the whole machine is slower from round to round, and first calls are far slower
            round_number = calls.count(name) - 1
            now[0] += seconds * (100 if round_number == 0 else round_number)

        return call

    samples = {"plain": sample("plain", 2.0), "a": sample("a", 3.0), "b": sample("b", 5.0)}
    times = take_turns(samples, 3, "", per_sample=2, clock=lambda: now[0])
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(rounds) == WARMUP_ROUNDS + 3
    assert all(sorted(names) == ["a", "b", "plain"] for names in rounds)
    assert [names[0] for names in rounds] == (["plain", "a", "b"] * 2)[: len(rounds)], "nobody always comes first"
    numbers = pd.Series(range(WARMUP_ROUNDS, WARMUP_ROUNDS + 3))
    for name, milliseconds in {"plain": 1000, "a": 1500, "b": 2500}.items():
        assert [line[name] for line in times] == pytest.approx((milliseconds * numbers).tolist())


def test_the_ratio_is_the_median_of_ratios_not_the_ratio_of_medians(monkeypatch):
    times = pd.DataFrame({"plain": [1.0, 1.0, 3.0], "plt-2": [1.0, 4.0, 9.0]})
    monkeypatch.setattr("laboratory.timing.take_turns", lambda *_: times)
    models = {row: SharedWeights(TINY).build(row) for row in (PLAIN, ROWS["plt-2"])}
    table = measure_rows(models, [{"tokens": 5}], lambda model, tokens: None, 3, "ms")
    line = records(table)[1]
    assert (line["row"], line["passes"], line["tokens"]) == ("plt-2", 2, 5)
    assert (line["ms"], line["ratio to plain"], line["min"], line["max"]) == (4.0, 3.0, 1.0, 9.0)
    assert (line["ms, by round"], line["ratio to plain, by round"]) == ([1.0, 4.0, 9.0], [1.0, 4.0, 3.0])


@every_row
@pytest.mark.parametrize("context", [1, 7, 8, 20])
def test_a_filled_cache_is_like_one_that_a_prompt_filled(row, context):
    """The window is 8: shorter and longer contexts."""
    weights = SharedWeights(TINY)
    model = weights.build(row)
    with torch.no_grad():
        real = model(random_ids(context, TINY).repeat(3, 1), use_cache=True).past_key_values
    filled = fill(new_cache(model.config), model.config, 3, context, CPU, torch.float32)
    assert type(filled) is type(real)
    assert filled.get_seq_length() == real.get_seq_length() == context
    assert getattr(filled, "dtype", None) == getattr(real, "dtype", None)  # transformers' has none
    assert measured(filled) == measured(real)
    parts = [(cache.all_layers if isinstance(cache, PLTCache) else cache.layers) for cache in (real, filled)]
    storages = set()
    for one, other in zip(*parts, strict=True):
        assert one.keys.shape == other.keys.shape and one.values.shape == other.values.shape
        assert one.get_seq_length() == other.get_seq_length()
        storages |= {other.keys.untyped_storage().data_ptr(), other.values.untyped_storage().data_ptr()}
    if context > 1:  # the window layers of a single token hold it, those of none hold nothing
        assert len(storages) == 2 * len(parts[1]), "nothing is shared, so that the bytes are real"
    if isinstance(real, PLTCache):
        assert torch.equal(real.carry.positions, filled.carry.positions)
        assert [state.shape for state in real.carry.states] == [state.shape for state in filled.carry.states]


def test_decoding_is_timed_per_token(monkeypatch):
    asked = []

    def timer(samples, rounds, description, per_sample):
        asked.append((list(samples), rounds, per_sample))
        return pd.DataFrame(dict.fromkeys(samples, [1.0, 1.0]))

    monkeypatch.setattr("laboratory.timing.take_turns", timer)
    table = measure_decoding(SharedWeights(TINY), [PLAIN, ROWS["plt-2"]], [1, 3], [5], rounds=2)
    assert table[["batch", "context"]].to_numpy().tolist() == [[1, 5], [1, 5], [3, 5], [3, 5]]
    assert asked == [(["plain", "plt-2"], 2, TOKENS)] * 2


@every_row
def test_decoding_goes_on_after_the_filled_cache(monkeypatch, row):
    caches = []
    monkeypatch.setattr("measuring_plt.greedy.fill", lambda cache, *args: caches.append(cache) or fill(cache, *args))
    sample = greedy_steps(SharedWeights(TINY).build(row), 2, 20)
    assert caches[0].get_seq_length() == 20
    sample()
    sample()
    assert caches[0].get_seq_length() == 20 + 2 * TOKENS


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
def test_all_rows_share_the_weights_of_plain(tie):
    setup = Setup(SIZES["tiny"] | {"tie_word_embeddings": tie}, CPU, torch.float32, "sdpa")
    weights = SharedWeights(setup)
    own = {name: tensor.data_ptr() for name, tensor in weights.build(PLAIN).named_parameters()}
    rows = {row.name: row for row in (*ROWS.values(), *itertools.chain(*LOOPED_ROWS.values()))}
    for name, row in rows.items():
        model = weights.build(row)
        assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
        found = {name: tensor.data_ptr() for name, tensor in model.named_parameters()}
        assert {name: found[name] for name in own} == own
        new = set(found) - set(own)
        assert all("plt_gate" in key for key in new) if name.startswith("plt") else (bool(new) == (name == "deep-2"))
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == tie


def test_plain_is_llama():
    weights = SharedWeights(TINY)
    input_ids = random_ids(30, TINY)
    with torch.no_grad():
        plain, llama = (weights.build(ROWS[name])(input_ids).logits for name in ("plain", "llama"))
    assert plain.std() > 0.01
    torch.testing.assert_close(plain, llama, rtol=0, atol=1e-5)  # fp32 summation order


@every_row
def test_a_training_step_leaves_no_gradients(row):
    weights = SharedWeights(TINY)
    model = weights.build(row)
    seen = []
    model.lm_head.weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.grad.abs().sum()))
    training_step(model, random_ids(8, TINY))()
    assert len(seen) == 1 and seen[0] > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rows_differ_in_nothing_but_their_mechanisms():
    configs = {name: row_config(TINY.fields, row) for name, row in ROWS.items()}
    assert configs["plain"].num_loops == configs["deep-2"].num_loops == 1
    assert configs["deep-2"].num_hidden_layers == 2 * configs["plain"].num_hidden_layers
    assert not configs["loop-2"].loop_shift and configs["shift-2"].loop_shift
    kinds = {
        name: config.loop_attention for name, config in configs.items() if name not in ("plain", "llama", "deep-2")
    }
    expected = {"loop-2": "own", "shift-2": "own", "shared-2": "shared", "plt-2": "gated_window"}
    assert kinds == expected | {"plt-3": "gated_window"}
    assert {name: row.num_passes for name, row in ROWS.items() if row.num_passes != 2} == {
        "plain": 1,
        "llama": 1,
        "plt-3": 3,
    }


def test_experts_are_measured_without_llama_and_say_what_is_active(tmp_path, capsys):
    fields = ["num_experts=5", "num_experts_per_tok=2", "moe_intermediate_size=16"]
    point = ["--batch-sizes", 1, "--contexts", 6, "--rounds", 1]
    run("decode", *SMALL, "--set", *fields, *point, "--output", tmp_path)
    written = json.loads((tmp_path / "decode.json").read_text())
    assert [record["row"] for record in written["decode"]] == [name for name in ROWS if name != "llama"]
    idle = 2 * 3 * 3 * 16 * 64  # of three experts, in two layers
    assert written["setting"]["parameters"] - written["setting"]["active parameters"] == idle
    assert re.search(r"^tiny \(0\.[\d]+M parameters, active 0\.", headline(written["setting"]))
    assert "active parameters" in capsys.readouterr().out
    assert "E (1 - (1 - k / E)^n)" in (tmp_path / "decode.md").read_text()


def test_the_memory_of_experts_has_a_formula(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")  # so that nothing is measured
    fields = ["num_experts=5", "num_experts_per_tok=2", "moe_intermediate_size=16", "mlp_only_layers=[0]"]
    run("memory", *SMALL, "--set", *fields, "--rows", "plt-2", "--output", tmp_path)
    written = json.loads((tmp_path / "memory.json").read_text())["memory"]
    assert {record["row"] for record in written} == {"plain", "plt-2"}
    assert all(record["formula, MB"] > 0 for record in written)


def test_the_formula_at_the_papers_setting():
    """16 layers, 8 KV heads of 64, window 64, 16-bit: 1.4 % more than plain at 4.5k, as published."""
    config = {name: row_config(SIZES["1.9b"], ROWS[name]) for name in ("plain", "plt-2", "loop-2")}
    sizes = {name: theory(config[name], 4608, 2) for name in config}
    assert sizes["plain"] == 2 * 16 * 8 * 64 * 4608 * 2 + 2048 * 2 + 8
    assert sizes["plt-2"] == 2 * 16 * 8 * 64 * (4608 + 63) * 2 + 2 * 2048 * 2 + 8
    assert sizes["plt-2"] / sizes["plain"] == pytest.approx(284 / 280, abs=1e-3)


@pytest.mark.parametrize("size", [size for size in SIZES if size != "tiny"])
def test_a_size_is_called_after_the_parameters_of_its_plain_row(size):
    config, model = row_config(SIZES[size], PLAIN), empty_model(Setup(SIZES[size], CPU, torch.bfloat16, "sdpa"), PLAIN)
    active = f"-a{model.num_active_parameters() / 1e9:.1f}b" if config.num_experts else ""
    assert size == f"{model.num_parameters() / 1e9:.1f}b{active}"
    assert config.head_dim == 64 and config.num_key_value_heads < config.num_attention_heads


def test_a_plot_is_the_same_file_every_time(tmp_path, results):
    table = pd.DataFrame(results["prefill"])
    for name in ("first", "second"):
        section = Section("prefill", "Prefill", table, [], {name: plot_prefill(table, "headline")})
        write(tmp_path, name, "headline", results["setting"], [section])
    for suffix in ("png", "svg"):
        first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("first", "second"))
        assert first == second
    assert b"<dc:date>" not in first
