"""A forward that ends in an exception closes its cache: some of its layers hold the new tokens, some do not."""

import pytest
import torch
from tiny import ABLATION_ROWS, tiny_ids, tiny_model

from modeling_plt import PLTCache, PLTStaticCache

CACHES = {"dynamic": PLTCache, "static": lambda config: PLTStaticCache(config, 20)}


def interrupt(module):
    def hook(*_):
        raise KeyboardInterrupt

    return module.register_forward_hook(hook)


@pytest.mark.parametrize("num_new", [1, 3])
@pytest.mark.parametrize("where", ["first layer", "last layer", "norm"])
@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_cannot_be_continued_behind_an_interrupted_forward(cache, row, where, num_new):
    model, input_ids = tiny_model(num_loops=3, **ABLATION_ROWS[row]), tiny_ids(1, 9)
    expected = model(input_ids, use_cache=False).logits[:, -num_new:]
    cache = CACHES[cache](model.config)
    module = {"first layer": model.model.layers[0], "last layer": model.model.layers[-1], "norm": model.model.norm}
    with torch.no_grad():
        model(input_ids[:, :-num_new], past_key_values=cache)
        hook = interrupt(module[where].mlp if "layer" in where else module[where])
        with pytest.raises(KeyboardInterrupt):
            model(input_ids[:, -num_new:], past_key_values=cache)
        hook.remove()
        with pytest.raises(NotImplementedError, match="ended in an exception"):
            model(input_ids[:, -num_new:], past_key_values=cache)
        cache.reset()
        model(input_ids[:, :-num_new], past_key_values=cache)
        logits = model(input_ids[:, -num_new:], past_key_values=cache).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)  # summation order


@pytest.mark.parametrize("cache", CACHES)
def test_a_refused_forward_leaves_the_cache_open(cache):
    model, input_ids = tiny_model(num_loops=3), tiny_ids(1, 9)
    cache = CACHES[cache](model.config)
    with torch.no_grad():
        model(input_ids[:, :5], past_key_values=cache)
        with pytest.raises(ValueError, match="attention_mask"):
            model(input_ids[:, 5:], attention_mask=torch.ones(1, 3), past_key_values=cache)
        logits = model(input_ids[:, 5:], past_key_values=cache).logits
        torch.testing.assert_close(logits, model(input_ids).logits[:, 5:], rtol=0, atol=2e-5)  # summation order


def test_a_full_static_cache_refuses_a_token_and_stays_open():
    model, input_ids = tiny_model(num_loops=3), tiny_ids(1, 6)
    cache = PLTStaticCache(model.config, 5)
    with torch.no_grad():
        model(input_ids[:, :5], past_key_values=cache)
        with pytest.raises(ValueError, match="has room for 5 tokens, 6 are wanted"):
            model(input_ids[:, 5:], past_key_values=cache)
    assert int(cache.get_seq_length()) == 5


@pytest.mark.parametrize("cache", CACHES)
def test_another_batch_size_or_dtype_is_refused_behind_a_cache(cache):
    model = tiny_model(num_loops=3)
    cache = CACHES[cache](model.config)
    with torch.no_grad():
        model(tiny_ids(2, 5), past_key_values=cache)
        with pytest.raises(ValueError, match="holds a batch of 2, the input is one of 3"):
            model(tiny_ids(3, 1), past_key_values=cache)
        with pytest.raises(ValueError, match="filled in torch.float32, the embeddings are torch.float64"):
            model.double()(tiny_ids(2, 1), past_key_values=cache)
        cache = PLTStaticCache(model.config, 5)
        cache.early_initialization(2, 2, 8, torch.float32, "cpu")
        with pytest.raises(ValueError, match="filled in torch.float32, the embeddings are torch.float64"):
            model(tiny_ids(2, 1), past_key_values=cache)
