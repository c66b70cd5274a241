"""The model computes what the naive per-token reference computes."""

import pytest
import torch
from reference import ReferencePLT
from tiny import ABLATION_ROWS, tiny_ids, tiny_model

FAMILIES = ("dense", "experts", "core")

# Norms and rotary angles run in float32 inside the float64 model: 1e-7 relative, measured up to 5e-7 after four loops.
RELATIVE_TOLERANCE = 1e-5


def assert_matches_reference(model, length=13):
    model = model.double()
    input_ids = tiny_ids(1, length)
    expected = torch.from_numpy(ReferencePLT(model.config, model.state_dict()).logits(input_ids[0].tolist()))
    with torch.no_grad():
        forward = model(input_ids, use_cache=False).logits[0]
        cache, decoded = None, []
        for token in input_ids.split(1, dim=1):
            output = model(token, past_key_values=cache, use_cache=True)
            cache, decoded = output.past_key_values, [*decoded, output.logits[0]]
    tolerance = RELATIVE_TOLERANCE * expected.abs().max()
    torch.testing.assert_close(forward, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(torch.cat(decoded), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("num_loops", [1, 2, 3, 4])
@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_ablation_rows_match_the_reference(row, num_loops, attn_implementation):
    assert_matches_reference(
        tiny_model(num_loops=num_loops, attn_implementation=attn_implementation, **ABLATION_ROWS[row])
    )


@pytest.mark.parametrize("sliding_window", [1, 2, 5, 12, 13, 14, 64])
@pytest.mark.parametrize("gate_input", ["hidden", "query"])
def test_gates_and_windows_match_the_reference(gate_input, sliding_window):
    assert_matches_reference(tiny_model(num_loops=3, gate_input=gate_input, sliding_window=sliding_window))


@pytest.mark.parametrize("num_key_value_heads", [1, 2, 4])
@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_grouped_queries_match_the_reference(row, num_key_value_heads):
    assert_matches_reference(
        tiny_model(num_loops=3, num_key_value_heads=num_key_value_heads, **ABLATION_ROWS[row]), length=7
    )


@pytest.mark.parametrize(
    "overrides",
    [
        {"loop_norm": False},
        {"loop_norm": False, "loop_shift": False, "gate_input": "query", "embedding_scale": 0.0, "hidden_scale": 1.0},
        {"loop_shift": False, "loop_attention": "own", "embedding_scale": 0.0, "hidden_scale": 1.0},
        {"loop_shift": False, "loop_attention": "shared"},
        {"embedding_scale": 1.0, "hidden_scale": 0.0},
        {"embedding_scale": 0.707, "hidden_scale": 0.053},
        {"attention_bias": True, "tie_word_embeddings": True},
        {"attention_bias": True, "attention_output_bias": False},
        {"qk_norm": True},
        {"qk_norm": True, "gate_input": "query", "num_key_value_heads": 4},
        {"norm_placement": "sandwich"},
        {"norm_placement": "sandwich", "loop_shift": False, "loop_attention": "own"},
        {"learned_scales": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"head_dim": 6},
        {"num_hidden_layers": 1},
    ],
    ids=lambda overrides: ",".join(f"{name}={value}" for name, value in overrides.items()),
)
def test_other_fields_match_the_reference(overrides):
    assert_matches_reference(tiny_model(num_loops=3, **overrides))


@pytest.mark.parametrize("loop_norm", [True, False])
def test_loop_hidden_states_match_the_reference(loop_norm):
    model = tiny_model(num_loops=3, loop_norm=loop_norm).double()
    input_ids = tiny_ids(1, 9)
    expected = torch.from_numpy(ReferencePLT(model.config, model.state_dict()).loop_states(input_ids[0].tolist()))
    with torch.no_grad():
        states = model(input_ids, output_loop_hidden_states=True).loop_hidden_states
    torch.testing.assert_close(torch.cat(states), expected, rtol=0, atol=RELATIVE_TOLERANCE * expected.abs().max())
