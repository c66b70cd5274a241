"""A GPU generates what a CPU generates."""

import pytest
import torch
from tiny import tiny_ids, tiny_model


@pytest.mark.gpu
@pytest.mark.compile  # of the static cache's step, by `generate`
@pytest.mark.parametrize("cache_implementation", [None, "static"], ids=["dynamic", "static"])
def test_a_gpu_generates_the_tokens_of_a_cpu(cache_implementation):
    model, prompt = tiny_model(num_loops=3).double(), tiny_ids(2, 9)  # rounding chooses between no two tokens
    settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    prompt, model = prompt.to("cuda"), model.to("cuda")
    settings["cache_implementation"] = cache_implementation
    tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    assert torch.equal(tokens.cpu(), expected)
