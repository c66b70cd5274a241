"""One loop is a plain decoder: Llama with the same weights."""

import pytest
import torch
from tiny import tiny_ids, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

ROPES = [
    {"rope_type": "default", "rope_theta": 10000.0},
    {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
]


def llama_like(model):
    """`LlamaForCausalLM` with the weights of a PLT of one loop."""
    config = model.config
    fields = {name: getattr(config, name) for name in LlamaConfig.__dataclass_fields__ if hasattr(config, name)}
    fields = {name: value for name, value in fields.items() if name not in ("architectures", "transformers_version")}
    llama = LlamaForCausalLM(LlamaConfig(**fields)).to(model.dtype).eval()
    llama.load_state_dict(model.state_dict(), strict=True)
    return llama


@pytest.mark.parametrize("rope_parameters", ROPES, ids=lambda rope: rope["rope_type"])
@pytest.mark.parametrize("overrides", [{}, {"attention_bias": True, "mlp_bias": True, "head_dim": 10}], ids=str)
@pytest.mark.parametrize("num_pads", [None, 7], ids=["no mask", "left padding"])
def test_one_loop_equals_llama(num_pads, overrides, rope_parameters):
    model = tiny_model(num_loops=1, rope_parameters=dict(rope_parameters), **overrides)
    llama, input_ids = llama_like(model), tiny_ids(2, 40)
    mask = positions = None
    if num_pads is not None:
        mask = torch.ones_like(input_ids)
        mask[0, :num_pads] = 0
        # Llama without position ids counts pads as positions, which rotates by rounding errors
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
    actual = model(input_ids, attention_mask=mask).logits
    expected = llama(input_ids, attention_mask=mask, position_ids=positions).logits
    real = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(actual[real], expected[real], rtol=0, atol=2e-5)


def test_one_loop_generates_llamas_tokens():
    model = tiny_model(num_loops=1).double()
    llama, prompt = llama_like(model), tiny_ids(2, 6)
    settings = {"max_new_tokens": 100, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(prompt)
    expected = llama.generate(prompt, attention_mask=mask, **settings)
    assert torch.equal(model.generate(prompt, attention_mask=mask, **settings), expected)


@pytest.mark.parametrize("loop_attention", ["gated_window", "shared", "own"])
@pytest.mark.parametrize("loop_shift", [True, False])
def test_with_one_loop_the_loop_settings_change_nothing(loop_shift, loop_attention):
    plain = tiny_model(num_loops=1)
    model = tiny_model(num_loops=1, loop_shift=loop_shift, loop_attention=loop_attention, gate_input="query")
    assert set(model.state_dict()) == set(plain.state_dict())
    input_ids = tiny_ids(1, 12)
    assert torch.equal(model(input_ids).logits, plain(input_ids).logits)


def test_a_gate_exists_only_where_it_is_used():
    def gates(**overrides):
        return sorted(name for name in tiny_model(**overrides).state_dict() if "plt_gate" in name)

    prefix = "model.layers.0.self_attn.plt_gate."
    assert gates(num_hidden_layers=1) == [prefix + "bias", prefix + "gate_norm.weight", prefix + "weight"]
    assert gates(num_hidden_layers=1, gate_input="query") == [prefix + "bias", prefix + "weight"]
    for overrides in ({"num_loops": 1}, {"loop_attention": "shared"}, {"loop_attention": "own"}):
        assert gates(**overrides) == []
