"""A saved folder is complete: it loads anywhere, with or without the package, and saves itself again unchanged."""

import json
from pathlib import Path

import pytest
import torch
from clean_process import run_in_clean_process
from safetensors.torch import load_file, save_file
from tiny import tiny_ids, tiny_model, when_loaded
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import configuration_plt.configuration_plt
import modeling_plt.modeling_plt
from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM, PLTModel

FAMILIES = ("dense", "experts", "core")

SOURCES = {path.name: path for path in Path(modeling_plt.modeling_plt.__file__).parent.glob("*_plt.py")}
SOURCES["configuration_plt.py"] = Path(configuration_plt.configuration_plt.__file__)

CLEAN_PROCESS = """
import sys
sys.modules["modeling_plt"] = sys.modules["configuration_plt"] = None  # as if the package were not installed

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

torch.set_num_threads(1)  # as in the tests: sums of other thread counts round differently

source, target = sys.argv[1:]
inputs = load_file(source + "/inputs.safetensors")
config = AutoConfig.from_pretrained(source, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=True).eval()
base = AutoModel.from_pretrained(source, trust_remote_code=True).eval()
built = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
assert type(model).__name__ == type(built).__name__ == "PLTForCausalLM" and type(base).__name__ == "PLTModel"
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
with torch.no_grad():
    outputs = {
        "logits": model(inputs["input_ids"]).logits,
        "states": base(inputs["input_ids"]).last_hidden_state,
        "tokens": model.generate(
            inputs["input_ids"],
            attention_mask=torch.ones_like(inputs["input_ids"]),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=None,
        ),
    }
model.save_pretrained(target)
again = AutoModelForCausalLM.from_pretrained(target, trust_remote_code=True)
again.save_pretrained(target + "/third")
AutoModel.from_pretrained(target + "/third", trust_remote_code=True)
for auto in (AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoModelForTokenClassification):
    head = auto.from_pretrained(source, trust_remote_code=True)
    assert torch.equal(head.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert type(head.model).__module__ == type(head).__module__
save_file(outputs, source + "/outputs.safetensors")
"""


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and "puts" not in path.name}


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [{}, {"loop_attention": "own", "tie_word_embeddings": True}], ids=str)
def test_a_saved_folder_loads_without_the_package_and_saves_itself_unchanged(tmp_path, overrides):
    model, input_ids = tiny_model(num_loops=3, **overrides), tiny_ids(2, 11)
    source, target = tmp_path / "source", tmp_path / "target"
    model.save_pretrained(source)
    save_file({"input_ids": input_ids}, source / "inputs.safetensors")
    run_in_clean_process(CLEAN_PROCESS, source, target, cwd=tmp_path)

    outputs = load_file(source / "outputs.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(outputs["logits"], model(input_ids).logits, **when_loaded())
        torch.testing.assert_close(outputs["states"], model.model(input_ids).last_hidden_state, **when_loaded())
    mask = torch.ones_like(input_ids)
    tokens = model.generate(input_ids, attention_mask=mask, max_new_tokens=20, do_sample=False, eos_token_id=None)
    assert torch.equal(outputs["tokens"], tokens)
    assert files(source) == files(target) == files(target / "third")


def test_a_saved_folder_holds_the_code_byte_for_byte(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    saved = files(tmp_path)
    assert {name: content for name, content in saved.items() if name.endswith(".py")} == {
        name: path.read_bytes() for name, path in SOURCES.items()
    }
    assert set(saved) - set(SOURCES) == {"config.json", "generation_config.json", "model.safetensors"}
    assert json.loads(saved["config.json"])["auto_map"] == {
        "AutoConfig": "configuration_plt.PLTConfig",
        "AutoModel": "modeling_plt.PLTModel",
        "AutoModelForCausalLM": "modeling_plt.PLTForCausalLM",
        "AutoModelForQuestionAnswering": "modeling_plt.PLTForQuestionAnswering",
        "AutoModelForSequenceClassification": "modeling_plt.PLTForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_plt.PLTForTokenClassification",
    }


@pytest.mark.parametrize("what", ["config", "base model"])
def test_a_folder_saved_from_a_part_maps_every_auto_class(tmp_path, what):
    model = tiny_model()
    (model.config if what == "config" else model.model).save_pretrained(tmp_path)
    assert len(json.loads((tmp_path / "config.json").read_text())["auto_map"]) == 6
    assert (tmp_path / "configuration_plt.py").read_bytes() == SOURCES["configuration_plt.py"].read_bytes()


def test_with_the_package_auto_classes_need_no_remote_code(tmp_path):
    model, input_ids = tiny_model(num_loops=3), tiny_ids(1, 12)
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is PLTConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is PLTModel
    for trust in ({}, {"trust_remote_code": True}):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, **trust)
        assert type(loaded) is PLTForCausalLM
        torch.testing.assert_close(loaded(input_ids).logits, model(input_ids).logits, **when_loaded())
    assert type(AutoModelForCausalLM.from_config(model.config)) is PLTForCausalLM


def test_sharded_weights_reload(tmp_path):
    model, input_ids = tiny_model(num_loops=3), tiny_ids(1, 12)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    reloaded = PLTForCausalLM.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], tensor), name
    torch.testing.assert_close(reloaded(input_ids).logits, model(input_ids).logits, **when_loaded())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_reloads_bit_for_bit(tmp_path, dtype):
    model = tiny_model(num_loops=3).to(dtype)
    model.save_pretrained(tmp_path)
    reloaded = PLTForCausalLM.from_pretrained(tmp_path)
    assert reloaded.dtype == dtype
    for name, tensor in model.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], tensor), name


def test_weights_are_not_initialised_again_when_loaded(tmp_path):
    """Gates start at zero; a loaded gate keeps its weights."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    reloaded = PLTForCausalLM.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], tensor), name
        assert tensor.abs().max() > 0


def test_a_setting_can_be_changed_when_loading(tmp_path):
    model, input_ids = tiny_model(num_loops=2), tiny_ids(1, 12)
    model.save_pretrained(tmp_path)
    wider = PLTForCausalLM.from_pretrained(tmp_path, sliding_window=64, num_loops=3)
    assert (wider.config.sliding_window, wider.config.num_loops) == (64, 3)
    expected = tiny_model(num_loops=3, sliding_window=64)(input_ids).logits
    torch.testing.assert_close(wider(input_ids).logits, expected, **when_loaded())


def test_resized_embeddings_still_work():
    model = tiny_model()
    model.resize_token_embeddings(70)
    assert model(tiny_ids(1, 5)).logits.shape == (1, 5, 70)
