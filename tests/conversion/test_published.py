"""LoopCoder-V2's format: its weights load without a conversion, and its logits are reproduced.

`data/<name>/` holds a tiny checkpoint with the published config and tensor names, and logits that the publisher's own
code computed from it in float32.
"""

import pytest
import torch
from converting import DATA, copy_source, logits_in_clean_process
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping

from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM

PUBLISHED = ["loopcoder_v2", "loopcoder_v2_query_gate"]


def load_directly(folder, **overrides):
    """The model that `from_pretrained` makes of a published folder; nothing may be missing or left over."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **overrides)
    assert not any(report.values()), report
    assert type(model) is PLTForCausalLM and type(model.config) is PLTConfig
    return model.eval()


def error(model, expected, chunk=23):
    logits, cache = [], None
    with torch.no_grad():
        for ids in expected["input_ids"].split(chunk, dim=1):
            output = model(ids, past_key_values=cache, use_cache=True)
            cache, logits = output.past_key_values, [*logits, output.logits]
    return (torch.cat(logits, dim=1) - expected["logits"]).abs().max().item()


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("chunk", [23, 1, 6], ids=["forward", "decode", "chunks"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_load_directly_and_give_the_published_logits(name, chunk, attn_implementation):
    model = load_directly(DATA / name, attn_implementation=attn_implementation)
    assert error(model, load_file(DATA / name / "expected.safetensors"), chunk) < 1e-4  # measured: 1e-5, float32


@pytest.mark.parametrize(
    "wrong",
    [{"sliding_window": 4}, {"sliding_window": 6}, {"loop_shift": False}, {"hidden_scale": 1.0}, {"loop_norm": False}],
    ids=str,
)
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_logits_tell_a_wrong_setting(name, wrong):
    assert error(load_directly(DATA / name, **wrong), load_file(DATA / name / "expected.safetensors")) > 1e-3


def write_second_name(file):
    """Rename the gates of a safetensors file as some published ones call them."""
    tensors = load_file(file)
    renamed = {name.replace(".plt_gate.", ".loop_gate_proj."): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", PUBLISHED)
def test_gates_of_the_second_name_load_directly_and_are_saved_under_ours(tmp_path, name):
    source = copy_source(name, tmp_path / "source")
    write_second_name(source / "model.safetensors")
    expected, model = load_file(source / "expected.safetensors"), load_directly(source)
    assert error(model, expected) < 1e-4
    model.save_pretrained(tmp_path / "saved")
    PLTForCausalLM(model.config).save_pretrained(tmp_path / "fresh")
    names = load_file(DATA / name / "model.safetensors").keys()
    for folder in ("saved", "fresh"):
        assert load_file(tmp_path / folder / "model.safetensors").keys() == names
    assert error(load_directly(tmp_path / "saved"), expected) < 1e-4


def test_transformers_knows_of_no_renaming_to_undo(tmp_path):
    """Its own check of saved names fails for one that changes nothing when a model is saved."""
    source = copy_source("loopcoder_v2", tmp_path / "source")
    write_second_name(source / "model.safetensors")
    loaded = load_directly(source)
    for model in (loaded, PLTForCausalLM(loaded.config), loaded.model):
        assert get_model_conversion_mapping(model, add_legacy=False) == []


def test_a_renaming_of_the_caller_goes_with_ours(tmp_path):
    source = copy_source("loopcoder_v2", tmp_path / "source")
    write_second_name(source / "model.safetensors")
    tensors = load_file(source / "model.safetensors")
    other = {name.replace(".q_proj.", ".query."): tensor for name, tensor in tensors.items()}
    save_file(other, source / "model.safetensors", metadata={"format": "pt"})
    model = PLTForCausalLM.from_pretrained(
        source, config=load_directly(DATA / "loopcoder_v2").config, key_mapping={r"\.query\.": ".q_proj."}
    )
    assert error(model.eval(), load_file(source / "expected.safetensors")) < 1e-4


def test_gates_of_the_second_name_load_with_the_code_of_a_folder(tmp_path):
    expected = load_file(DATA / "loopcoder_v2" / "expected.safetensors")
    folder = tmp_path / "saved"
    load_directly(DATA / "loopcoder_v2").save_pretrained(folder)
    write_second_name(folder / "model.safetensors")
    logits = logits_in_clean_process(tmp_path, {"saved": expected["input_ids"]})["saved"]
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=1e-4)
