"""LoopCoder-V2's format: its tensors load as they lie, and its logits are reproduced.

`data/<name>/` holds a tiny checkpoint with the published config and tensor names, and logits that the publisher's own
code computed from it in float32.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM

DATA = Path(__file__).parents[1] / "data"
PUBLISHED = ["loopcoder_v2", "loopcoder_v2_query_gate"]
SAME_NAME = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
]


def load_published(name, **overrides):
    source = json.loads((DATA / name / "config.json").read_text())
    left, _ = source["plt_window_size"]
    fields = {field: source[field] for field in SAME_NAME} | {
        "rope_parameters": {"rope_type": "default", "rope_theta": source["rope_theta"]},
        "num_loops": source["plt_num_loops"],
        "sliding_window": left + 1,  # theirs counts the keys to the left of the token
        "embedding_scale": source["plt_emb_scale"],
        "hidden_scale": source["plt_hidden_scale"],
        "loop_norm": source["plt_normalize_per_loop"],
        "gate_input": "hidden" if source["plt_gate_use_hidden_states"] else "query",
    }
    model = PLTForCausalLM(PLTConfig(**(fields | overrides))).eval()
    model.load_state_dict(load_file(DATA / name / "model.safetensors"), strict=True)
    return model, load_file(DATA / name / "expected.safetensors")


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
def test_published_logits_are_reproduced(name, chunk, attn_implementation):
    model, expected = load_published(name)
    model.set_attn_implementation(attn_implementation)
    assert error(model, expected, chunk) < 1e-4  # measured: 1e-5, float32


@pytest.mark.parametrize(
    "wrong",
    [{"sliding_window": 4}, {"sliding_window": 6}, {"loop_shift": False}, {"hidden_scale": 1.0}, {"loop_norm": False}],
    ids=str,
)
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_logits_tell_a_wrong_setting(name, wrong):
    assert error(*load_published(name, **wrong)) > 1e-3
