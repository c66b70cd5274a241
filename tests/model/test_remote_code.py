"""Each saved folder runs the code that it holds, also beside another of the same name."""

import shutil

import pytest
import torch
from clean_process import put_into_hub_cache, run_in_clean_process
from safetensors.torch import load_file, save_file
from tiny import tiny_ids, tiny_model, when_loaded

FAMILIES = ("dense", "experts", "core")

EDIT = """

exact = shift


def shift(*args):
    return 0.5 * exact(*args)
"""

LOAD = """
import sys
sys.modules["modeling_plt"] = sys.modules["configuration_plt"] = None  # as if the package were not installed

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

torch.set_num_threads(1)
input_ids, outputs = load_file("inputs.safetensors")["input_ids"], {}


@torch.no_grad()
def record(name, folder):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    base = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    built = AutoModelForCausalLM.from_config(config, trust_remote_code=True).eval()
    built.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(input_ids).logits, built(input_ids).logits, rtol=0, atol=1e-5)
    states = base(input_ids).last_hidden_state
    torch.testing.assert_close(model(input_ids).logits, model.lm_head(states), rtol=0, atol=1e-5)
    outputs[name] = model(input_ids).logits
    return model


record("a", "a/final")
record("b", "b/final").save_pretrained("c/final")
record("c", "c/final")
record("a again", "a/final")
record("hub", "someone/final")
with open("a/final/passes_plt.py", "a") as file:  # a user's edit
    file.write(sys.argv[1])
record("a edited", "a/final")
save_file(outputs, "outputs.safetensors")
"""


@pytest.mark.slow
def test_folders_of_one_name_run_their_own_code(tmp_path):
    """Also a folder whose code is edited after it was loaded, and a repository in the cache of the hub."""
    model, input_ids = tiny_model(), tiny_ids(2, 9)
    model.save_pretrained(tmp_path / "a" / "final")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with open(tmp_path / "b" / "final" / "passes_plt.py", "a") as file:
        file.write(EDIT)
    put_into_hub_cache(tmp_path / "b" / "final", "someone/final", tmp_path)
    save_file({"input_ids": input_ids}, tmp_path / "inputs.safetensors")
    run_in_clean_process(LOAD, EDIT, cwd=tmp_path)
    logits = load_file(tmp_path / "outputs.safetensors")
    for name in ("a", "a again"):
        torch.testing.assert_close(logits[name], model(input_ids).logits, **when_loaded())
    assert (logits["a"] - logits["b"]).abs().max() > 0.1
    for name in ("c", "hub", "a edited"):
        torch.testing.assert_close(logits[name], logits["b"], **when_loaded())
    for name in ("passes_plt.py", "modeling_plt.py", "config.json"):
        assert (tmp_path / "c" / "final" / name).read_bytes() == (tmp_path / "b" / "final" / name).read_bytes()
