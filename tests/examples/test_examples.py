"""The examples run, offline and small."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

# one worker trains the models that these tests share
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("examples")]
ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def run(folder, *command, environment=None):
    command = [sys.executable, *map(str, command)]
    environment = ENVIRONMENT | {"HF_HOME": str(folder / "hf")} | (environment or {})
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the demo's plain model and PLT were trained for a few steps on a few local texts."""
    folder = tmp_path_factory.mktemp("demo")
    texts = folder / "texts.jsonl"
    lines = [f"def add_{i}(x):  # adds {i} to a number, and returns it\n    return x + {i}\n" for i in range(100)]
    texts.write_text("".join(json.dumps({"text": "".join(lines[i : i + 50])}) + "\n" for i in range(50)))
    train = (ROOT / "examples/train.py", "--dataset", texts, "--steps", 3)
    run(folder, *train, "--output", "runs/demo/plain", "--set", "num_loops=1")
    output = run(folder, *train, "--output", "runs/demo/plt", "--tokenizer", "runs/demo/plain")
    assert "2 loops, gated_window" in output
    return folder


def test_training_saves_a_complete_folder(folder):
    names = {path.name for path in (folder / "runs/demo/plt").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "held_out.jsonl", "modeling_plt.py"} <= names
    assert any("plt_gate" in name for name in load_file(folder / "runs/demo/plt/model.safetensors"))
    assert {path.name for path in (folder / "runs/demo").iterdir()} == {"plain", "plt"}, "nothing half-written stays"


def test_a_wrong_field_is_refused(folder):
    command = [sys.executable, str(ROOT / "examples/train.py"), "--output", "x", "--steps", "1", "--set", "loops=3"]
    result = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode != 0
    assert "FIELD=VALUE with a field of PLTConfig, got 'loops=3'" in result.stderr
    assert not (folder / "x").exists()


def test_a_folder_that_holds_no_model_is_not_replaced(folder):
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("words")
    command = [sys.executable, str(ROOT / "examples/train.py"), "--output", "notes", "--steps", "1"]
    result = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode != 0 and "must hold a PLT to be replaced" in result.stderr
    assert (folder / "notes" / "mine.txt").read_text() == "words"


def test_comparison_writes_the_table(folder):
    models = ["runs/demo/plain", "runs/demo/plt"]
    output = run(folder, ROOT / "examples/compare.py", "--models", *models, "--output", "runs/demo")
    table = (folder / "runs/demo/comparison.md").read_text()
    assert table.strip() in output
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "| pl" in line]
    assert [(row[0], row[1], row[6]) for row in rows] == [("plain", "1", "1"), ("plt", "2", rows[1][6])]
    # keys and values, KV heads, head_dim, tokens, float32; a position, a state per loop, and in the PLT a window
    assert int(rows[0][-1]) == 2 * 2 * 32 * 512 * 4 + 8 + 128 * 4
    assert int(rows[1][-1]) == 2 * 2 * 32 * (512 + 15) * 4 + 8 + 2 * 128 * 4
    (folder / "runs/demo/comparison.md").unlink()
    (folder / "runs/demo/comparison.json").unlink()


def test_generation_from_a_folder_and_from_nothing(folder):
    generate = (ROOT / "examples/generate.py", "--max-new-tokens", 5)
    assert "5 tokens by " in run(folder, *generate, "--model", "runs/demo/plt")
    assert "5 tokens by modeling_plt" in run(folder, *generate)


def test_lm_eval_scores_the_held_out_texts(folder):
    model = folder / "runs/demo/plt"
    command = [
        *("-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "8"),
        *("--model_args", f"pretrained={model},dtype=float32", "--trust_remote_code"),
        *("--tasks", "held_out", "--include_path", ROOT / "examples/lm_eval"),
    ]
    output = run(model, *command, environment={"PYTHONPATH": ""})
    value = re.search(r"bits_per_byte *\|. *\| *([0-9.]+)", output)
    assert value and 0 < float(value[1]) < 8, output


def test_the_conversion_benchmark_runs(folder):
    output = run(folder, "-m", "command_plt.main", "bench", "convert", "--gigabytes", 0.01)
    assert re.search(r"\| plt convert --to-plt +\| +[0-9.]+ +\| +[0-9.]+ +\|", output)
