"""Compiled forwards: one graph serves all lengths, as it does for Llama."""

import pytest
import torch
from tiny import ABLATION_ROWS, tiny_ids, tiny_model
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_plt import PLTStaticCache

FAMILIES = ("dense", "experts")

pytestmark = pytest.mark.compile
LENGTHS = (5, 9, 14, 16, 30, 48, 7, 2)  # below, above and at multiples of the window


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs_by_length(model, padded=False):
    """How many graphs there are after each length; the logits are those without compilation."""
    compiled, graphs = torch.compile(model, backend="eager"), []
    for length in LENGTHS:
        input_ids = tiny_ids(2, length)
        mask = torch.ones_like(input_ids)
        mask[0, : length // 2 if padded else 0] = 0
        kwargs = {"attention_mask": mask if padded else None, "use_cache": False}
        with torch.no_grad():
            difference = (compiled(input_ids, **kwargs).logits - model(input_ids, **kwargs).logits)[mask == 1]
        assert difference.abs().max() < 2e-5  # summation order
        graphs.append(counters["stats"]["unique_graphs"])
    return graphs


def test_llama_needs_one_graph_for_the_first_length_and_one_for_all_others():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    assert graphs_by_length(LlamaForCausalLM(LlamaConfig(vocab_size=61, **sizes)).eval()) == [1] + [2] * 7


@pytest.mark.parametrize("padded", [False, True], ids=["no mask", "left padding"])
@pytest.mark.parametrize("loop_attention", ["gated_window", "own"])
def test_a_plt_needs_no_more(loop_attention, padded):
    model = tiny_model(num_loops=3, sliding_window=8, num_hidden_layers=1, loop_attention=loop_attention)
    assert graphs_by_length(model, padded) == [1] + [2] * 7


@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_models_of_other_loops_and_layers_are_compiled_beside_each_other(row):
    """A compiler that has seen two values of a number takes it for no constant any more."""
    for num_loops, num_layers in ((2, 2), (3, 3), (4, 2)):
        model = tiny_model(num_loops=num_loops, num_hidden_layers=num_layers, **ABLATION_ROWS[row])
        input_ids, cache = tiny_ids(1, 12), PLTStaticCache(model.config, 16)
        step = torch.compile(model, backend="eager", fullgraph=True)
        with torch.no_grad():
            expected = model(input_ids).logits[:, -1:]
            model(input_ids[:, :-2], past_key_values=cache)
            for position in (-2, -1):
                logits = step(input_ids[:, [position]], past_key_values=cache).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)
