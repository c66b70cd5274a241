"""The examples run, offline and small."""

import contextlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from checkout import on_path
from datasets import load_from_disk
from safetensors.torch import load_file
from transformers import AutoTokenizer

from laboratory.costs import compare
from measuring_plt import models
from measuring_plt.sizes import SIZES

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": on_path(ROOT)}


def run(folder, *command, environment=None):
    command = [sys.executable, *map(str, command)]
    environment = ENVIRONMENT | {"HF_HOME": str(folder / "hf")} | (environment or {})
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def example(folder, name, *arguments):
    """Run an example in a folder, in this process, which has imported the libraries; what it prints."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "hf")
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    return output.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the demo's three models were trained for a few steps on a few local texts."""
    folder = tmp_path_factory.mktemp("demo")
    texts = folder / "texts.jsonl"
    lines = [f"def add_{i}(x):  # adds {i} to a number, and returns it\n    return x + {i}\n" for i in range(100)]
    texts.write_text("".join(json.dumps({"text": "".join(lines[i : i + 50])}) + "\n" for i in range(50)))
    notes = folder / "runs/demo/plt/notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("words")
    example(folder, "prepare.py", "--dataset", texts, "--output", "runs/demo/data")
    train = ("train.py", "--data", "runs/demo/data", "--steps", 3)
    settings = {"plain": ["num_loops=1"], "loop": ["loop_shift=False", "loop_attention=own"], "plt": []}
    for name, fields in settings.items():
        output = example(folder, *train, "--output", f"runs/demo/{name}", "--set", *fields)
        (folder / f"{name}.log").write_text(output)
    assert "2 loops, gated_window" in output
    return folder


def test_training_saves_a_complete_folder_and_deletes_nothing(folder):
    names = {path.name for path in (folder / "runs/demo/plt").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "modeling_plt.py", "notes.txt"} <= names
    assert any("plt_gate" in name for name in load_file(folder / "runs/demo/plt/model.safetensors"))


def test_held_out_texts_are_not_trained_on(folder):
    texts = [json.loads(line)["text"] for line in (folder / "texts.jsonl").read_text().splitlines()]
    held_out = [
        json.loads(line)["text"] for line in (folder / "runs/demo/data/held_out.jsonl").read_text().splitlines()
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder / "runs/demo/data")
    rows = load_from_disk(folder / "runs/demo/data/rows")
    assert {len(ids) for split in rows.values() for ids in split["input_ids"]} == {128}
    decoded = {split: tokenizer.decode([id for ids in rows[split]["input_ids"] for id in ids]) for split in rows}
    # the last text of a batch is cut at a whole row
    starts = {split: {text for text in texts if f"<|end|>{text[:200]}" in decoded[split]} for split in rows}
    assert len(held_out) == 12
    assert starts["test"] and starts["test"] <= set(held_out)
    assert len(starts["train"]) > 30 and not starts["train"] & set(held_out)


@pytest.fixture
def refusal(folder, capsys):
    """The line with which an example ends that cannot do what its arguments ask for."""

    def refusal(*arguments):
        with pytest.raises(SystemExit) as end:
            example(folder, *arguments)
        assert end.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return refusal


def test_each_refusal_leads_to_the_next_step(refusal, folder):
    train = ("train.py", "--output", "x", "--steps", 1, "--data")
    assert "`python examples/prepare.py --output nothing` first" in refusal(*train, "nothing")
    message = refusal(*train, "runs/demo/data", "--set", "loops=3")
    assert "FIELD=VALUE with a field of PLTConfig, got 'loops=3'" in message
    message = refusal(*train, "runs/demo/data", "--set", "num_loops=0")
    assert "num_loops" in message and "must be an integer of at least 1, got 0" in message
    assert "such as `make demo` writes, got ./nothing" in refusal("generate.py", "--model", "./nothing")
    (folder / "few.csv").write_text("line\nwords\n")
    message = refusal("prepare.py", "--output", "x", "--dataset", folder / "few.csv")
    assert "must have a column `text` of strings, got the columns ['line']" in message
    assert not (folder / "x").exists()


@pytest.fixture
def compared(folder, monkeypatch):
    """The demo's folder, complete, with sizes for the comparison that take no time."""
    for name in ("converted", "healed"):
        shutil.copytree(folder / "runs/demo/plt", folder / "runs/demo" / name, dirs_exist_ok=True)
    monkeypatch.setattr(compare, "FIELDS", SIZES["tiny"])
    monkeypatch.setattr(compare, "ROUNDS", 2)
    return folder / "runs/demo"


def test_comparison_shows_quality_and_cost(compared, folder, capsys):
    compare.compare(compared)
    text, printed = (compared / "comparison.md").read_text().strip(), capsys.readouterr().out
    assert text in printed
    bars = [len(line.split()[1]) for line in printed.splitlines()[-3:]]
    assert bars == [20, 40, 20], "the cache of plain, loop and PLT"
    table = json.loads((compared / "comparison.json").read_text())["rows"]
    by_model = {line["model"]: line for line in table}
    # the losses that training ended with, which averages over other batches
    logs = {name: (folder / f"{name}.log").read_text() for name in ("plain", "loop", "plt")}
    losses = {name: float(re.search(r"held-out loss ([0-9.]+)", log)[1]) for name, log in logs.items()}
    losses["converted"] = losses["healed"] = losses["plt"]  # they are copies here
    assert {name: line["held-out loss"] for name, line in by_model.items()} == pytest.approx(losses, abs=0.0011)
    assert [line["loops"] for line in table] == [1, 2, 2, 2, 2]
    # keys and values, layers, KV heads, head_dim, tokens, float32; the loop keeps both loops'
    plain = 2 * 2 * 2 * 16 * 1024 * 4 / 1e6
    assert [line["KV cache, MB"] for line in table] == pytest.approx([plain, 2 * plain, plain, plain, plain], abs=0.06)
    assert by_model["plain"]["time ratio"] == 1
    assert by_model["converted"]["ms per token"] == by_model["plt"]["ms per token"], "one row of the benchmark"
    assert by_model["plain"]["loop 0 alone"] == by_model["plain"]["held-out loss"]
    assert by_model["plt"]["loop 0 alone"] != by_model["plt"]["held-out loss"]
    assert (compared / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_comparison_times_packed_weights_and_says_on_what(compared, monkeypatch):
    packed = []
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(models, "pack_with", lambda *arguments: packed.append(arguments))
    compare.compare(compared)
    text = (compared / "comparison.md").read_text()
    assert "packed float32" in text and "CPU of capability AVX2" in text
    assert [dtype for _, dtype, _ in packed] == [None] * 3, "plain, loop and plt"


def test_comparison_names_what_is_missing(tmp_path):
    (tmp_path / "plain").mkdir()
    with pytest.raises(ValueError, match="a complete `make demo`, got one without data, loop, plt, converted, healed"):
        compare.compare(tmp_path)


def test_generation_from_a_folder_and_from_nothing(folder):
    generate = (ROOT / "examples/generate.py", "--max-new-tokens", 5)
    assert "5 tokens by " in run(folder, *generate, "--model", "runs/demo/plt")
    assert "5 tokens by modeling_plt" in run(folder, *generate)


@pytest.mark.parametrize(
    ("program", "switches", "environment"),
    [
        (("lm_eval", "run"), ["--trust_remote_code"], {"PYTHONPATH": ""}),
        (("command_plt.main", "eval"), [], {}),
    ],
    ids=["lm_eval", "plt eval"],
)
def test_lm_eval_scores_the_held_out_texts(folder, program, switches, environment):
    model = folder / "runs/demo/plt"
    command = [
        *("-m", *program, "--model", "hf", "--device", "cpu", "--batch_size", "8"),
        *("--model_args", f"pretrained={model},dtype=float32", *switches),
        *("--tasks", "held_out", "--include_path", ROOT / "examples/lm_eval"),
    ]
    output = run(folder / "runs/demo/data", *command, environment=environment)
    value = re.search(r"bits_per_byte *\|. *\| *([0-9.]+)", output)
    assert value and 0 < float(value[1]) < 8, output
