"""The static cache gives what the dynamic one gives, at fixed addresses, and compiles once."""

import pytest
import torch
from reference import ReferencePLT
from tiny import ABLATION_ROWS, tiny_ids, tiny_model
from torch._dynamo.testing import CompileCounter

from modeling_plt import PLTStaticCache

FAMILIES = ("dense", "experts", "core")

TOLERANCE = {"rtol": 0, "atol": 5e-5}  # float32 summation order, of few rows and of many
LENGTHS = [14, 9, 13, 2, 1]


def left_padded(lengths=LENGTHS, seed=1):
    """Token ids and mask `[B, longest]`, pads on the left."""
    input_ids = tiny_ids(len(lengths), max(lengths), seed=seed)
    mask = torch.stack([(torch.arange(max(lengths)) >= max(lengths) - length).long() for length in lengths])
    return input_ids.masked_fill(mask == 0, 0), mask


def addresses(cache):
    parts = [(layer.keys, layer.values, layer.cumulative_length) for layer in cache.all_layers]
    return [part.data_ptr() for group in [*parts, (*cache.carry.states, cache.carry.positions)] for part in group]


@pytest.mark.parametrize("sizes", [[12], [5, 7], [1] * 12, [4, 1, 1, 3, 1, 2]], ids=str)
@pytest.mark.parametrize("num_loops", [1, 2, 3])
@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize("one_pass", [True, False])
@torch.no_grad()
def test_logits_equal_those_of_the_dynamic_cache(one_pass, row, num_loops, sizes):
    model, input_ids = tiny_model(num_loops=num_loops, one_pass=one_pass, **ABLATION_ROWS[row]), tiny_ids(2, 12)
    cache, done = PLTStaticCache(model.config, max_cache_len=15), 0
    expected = model(input_ids, use_cache=False).logits
    for chunk in input_ids.split(sizes, dim=1):
        logits = model(chunk, past_key_values=cache).logits
        torch.testing.assert_close(logits, expected[:, done : done + chunk.shape[1]], **TOLERANCE)
        done += chunk.shape[1]


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("sliding_window", [1, 2, 4, 12, 13, 40])
@torch.no_grad()
def test_every_window_matches_the_reference(sliding_window, attn_implementation):
    model = tiny_model(num_loops=3, sliding_window=sliding_window, attn_implementation=attn_implementation)
    input_ids = tiny_ids(1, 30)
    expected = ReferencePLT(model.config, model.state_dict()).logits(input_ids[0].tolist())
    cache = PLTStaticCache(model.config, max_cache_len=30)
    logits = [model(chunk, past_key_values=cache).logits[0] for chunk in input_ids.split([7, 9, *[1] * 14], dim=1)]
    torch.testing.assert_close(torch.cat(logits).double(), torch.from_numpy(expected), rtol=0, atol=5e-5)


@pytest.mark.parametrize("sizes", [[14, 1, 1], [3, 11, 2], [12, 4]], ids=str)
@pytest.mark.parametrize("row", ABLATION_ROWS)
@torch.no_grad()
def test_left_padded_rows_equal_themselves_alone(row, sizes):
    model = tiny_model(num_loops=3, **ABLATION_ROWS[row])
    input_ids, mask = left_padded([16, 11, 15, 4, 3])
    cache, done, logits = PLTStaticCache(model.config, max_cache_len=20), 0, []
    for chunk in input_ids.split(sizes, dim=1):
        done += chunk.shape[1]
        logits.append(model(chunk, attention_mask=mask[:, :done], past_key_values=cache).logits)
    logits = torch.cat(logits, dim=1)
    for row_idx, length in enumerate([16, 11, 15, 4, 3]):
        alone = model(input_ids[row_idx : row_idx + 1, 16 - length :], use_cache=False).logits[0]
        torch.testing.assert_close(logits[row_idx, 16 - length :], alone, **TOLERANCE)


@pytest.mark.parametrize("chunks", [[40], [25, 25], [3, 40, 9]], ids=str)
@torch.no_grad()
def test_pruned_prefill_leaves_the_same(chunks):
    model, input_ids = tiny_model(num_loops=3).double(), tiny_ids(2, sum(chunks) + 6)
    expected, cache = model(input_ids, use_cache=False).logits, PLTStaticCache(model.config, max_cache_len=60)
    done = 0
    for chunk in input_ids.split([*chunks, *[1] * 6], dim=1):
        done += chunk.shape[1]
        logits = model(chunk, past_key_values=cache, logits_to_keep=1).logits
        torch.testing.assert_close(logits[:, 0], expected[:, done - 1], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_beams": 3},
        {"prefill_chunk_size": 4},
        {"prefill_chunk_size": 1},
        {"do_sample": True, "top_k": 8},
        {"num_beams": 2, "num_return_sequences": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize("padded", [False, True])
def test_generate_gives_the_same_tokens(row, how, padded):
    model = tiny_model(num_loops=2, **ABLATION_ROWS[row])
    input_ids, mask = left_padded()
    inputs = {"input_ids": input_ids, "attention_mask": mask} if padded else {"input_ids": tiny_ids(2, 14)}
    settings = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0} | how
    outputs = []
    for cache_implementation in (None, "static"):
        torch.manual_seed(0)
        outputs.append(model.generate(**inputs, **settings, cache_implementation=cache_implementation))
    assert torch.equal(*outputs)
    cache = model.generate(
        **inputs, **settings, cache_implementation="static", return_dict_in_generate=True
    ).past_key_values
    assert isinstance(cache, PLTStaticCache)


@pytest.mark.compile
@pytest.mark.parametrize("row", ABLATION_ROWS)
@torch.no_grad()
def test_one_compiled_step_serves_a_whole_generation(row):
    """Prompts of different lengths, padded or not, a reset in between: one graph, no break, fixed addresses."""
    model, counter = tiny_model(num_loops=3, **ABLATION_ROWS[row]), CompileCounter()
    torch._dynamo.reset()
    step = torch.compile(model.forward, backend=counter, fullgraph=True, dynamic=False)
    cache = PLTStaticCache(model.config, max_cache_len=64)
    fixed = None
    for length in (14, 5, 1):
        input_ids = tiny_ids(2, length + 20, seed=length)
        expected = model(input_ids, use_cache=False).logits
        cache.reset()
        model(input_ids[:, :length], past_key_values=cache, logits_to_keep=1)
        fixed = fixed or addresses(cache)
        for column in range(length, length + 20):
            logits = step(input_ids[:, column : column + 1].clone(), past_key_values=cache).logits
            torch.testing.assert_close(logits[:, 0], expected[:, column], **TOLERANCE)
        assert addresses(cache) == fixed
    assert counter.frame_count == 1


@pytest.mark.compile
@pytest.mark.parametrize("how", [{}, {"prefill_chunk_size": 4}], ids=str)
def test_generate_compiles_once_and_never_again(how):
    """As on a GPU: `generate` itself compiles the step, and later calls reuse it."""
    model, counter = tiny_model(num_loops=2), CompileCounter()
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0} | how
    batches = [dict(zip(("input_ids", "attention_mask"), left_padded(seed=seed), strict=True)) for seed in (1, 2, 3)]
    expected = [model.generate(**batch, **settings) for batch in batches]
    torch._dynamo.reset()
    compiled = torch.compile(model.__call__, backend=counter, fullgraph=True, dynamic=False)
    model.get_compiled_call = lambda config: compiled
    model._valid_auto_compile_criteria = lambda *args, **kwargs: True
    for batch, tokens in zip(batches, expected, strict=True):
        assert torch.equal(model.generate(**batch, **settings, cache_implementation="static"), tokens)
        # chunks of 4 tokens, of the 2 that 14 leave, and single tokens
        assert counter.frame_count == (3 if "prefill_chunk_size" in how else 1)


@pytest.mark.parametrize("row", ABLATION_ROWS)
@torch.no_grad()
def test_reordered_rows_stay_at_their_addresses(row):
    model, input_ids = tiny_model(num_loops=3, **ABLATION_ROWS[row]), tiny_ids(3, 12)
    cache = PLTStaticCache(model.config, max_cache_len=12)
    model(input_ids[:, :9], past_key_values=cache)
    fixed, beams = addresses(cache), torch.tensor([2, 2, 0])
    cache.reorder_cache(beams)
    logits = model(input_ids[beams, 9:], past_key_values=cache).logits
    torch.testing.assert_close(logits, model(input_ids, use_cache=False).logits[beams, 9:], **TOLERANCE)
    assert addresses(cache) == fixed


@pytest.mark.compile
def test_a_step_compiled_by_inductor_gives_the_same():
    model, input_ids = tiny_model(num_loops=2), tiny_ids(2, 12)
    expected = model(input_ids, use_cache=False).logits
    torch._dynamo.reset()
    step = torch.compile(model.forward, fullgraph=True, dynamic=False)
    with torch.no_grad():
        cache = PLTStaticCache(model.config, max_cache_len=16)
        model(input_ids[:, :8], past_key_values=cache)
        for column in range(8, 12):
            logits = step(input_ids[:, column : column + 1].clone(), past_key_values=cache).logits
            torch.testing.assert_close(logits[:, 0], expected[:, column], **TOLERANCE)


def test_bytes_are_those_of_the_formula():
    model = tiny_model(num_loops=3)
    cache = model.generate(
        tiny_ids(2, 5),
        max_new_tokens=9,
        min_new_tokens=9,
        cache_implementation="static",
        return_dict_in_generate=True,
    ).past_key_values
    batch, size, columns, window, hidden = 2, 2 * 8, 13, 4, 32
    layers, looped = model.config.num_hidden_layers, len(model.config.looped_stage.layers)
    elements = 2 * size * (layers * columns + 2 * looped * window) + 3 * hidden
    assert cache.nbytes == batch * (4 * elements + 2 * 8)


def test_what_it_cannot_do_is_refused():
    model, input_ids = tiny_model(num_loops=2), tiny_ids(1, 6)
    with pytest.raises(ValueError, match="`max_cache_len` must be at least 1, got 0"):
        PLTStaticCache(model.config, 0)
    cache = PLTStaticCache(model.config, 5)
    with pytest.raises(ValueError, match="has room for 5 tokens, 6 are wanted"):
        model(input_ids, past_key_values=cache)
    for refused in (cache.activate_past_recording, lambda: cache.crop(-1)):
        with pytest.raises(NotImplementedError, match="cannot take tokens back"):
            refused()
    for refused in (lambda: cache.batch_repeat_interleave(2), lambda: cache.batch_select_indices([0])):
        with pytest.raises(NotImplementedError, match="batch of a `PLTStaticCache` is fixed"):
            refused()
    with pytest.raises((NotImplementedError, ValueError)):
        model.generate(input_ids, max_new_tokens=4, prompt_lookup_num_tokens=2, cache_implementation="static")
    with pytest.raises(NotImplementedError, match="offloaded_static"):
        model.generate(input_ids, max_new_tokens=4, cache_implementation="offloaded_static")
    with pytest.raises(ValueError, match="`sliding_window=4`"):
        tiny_model(num_loops=2, sliding_window=5)(input_ids, past_key_values=PLTStaticCache(model.config, 9))
    model.set_attn_implementation("flex_attention")
    with pytest.raises(NotImplementedError, match="eager and sdpa"):
        model(input_ids, past_key_values=PLTStaticCache(model.config, 9))


@pytest.mark.parametrize("max_cache_len", [1, 3, 9, 10, 20])
@pytest.mark.parametrize("prefill", [1, 5, 9])
def test_a_ring_is_no_larger_than_the_cache(max_cache_len, prefill):
    model, input_ids = tiny_model(num_loops=3, sliding_window=10), tiny_ids(2, min(max_cache_len, 12))
    mask = torch.ones_like(input_ids)
    mask[0, :2] = 0
    expected = model(input_ids, attention_mask=mask).logits
    cache, logits = PLTStaticCache(model.config, max_cache_len), []
    with torch.no_grad():
        for ids in (input_ids[:, :prefill], *(input_ids[:, n : n + 1] for n in range(prefill, input_ids.shape[1]))):
            num_seen = sum(part.shape[1] for part in logits) + ids.shape[1]
            output = model(ids, attention_mask=mask[:, :num_seen], past_key_values=cache)
            logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1)[mask == 1], expected[mask == 1], rtol=0, atol=2e-5)
    assert {layer.keys.shape[2] for layer in cache.later_loops} == {min(10, max_cache_len)}
