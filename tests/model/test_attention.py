"""Which kernels run, how often, and on what: the claims about decoding cost."""

import pytest
import torch
from tiny import ABLATION_ROWS, tiny_ids, tiny_model
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask, sdpa_mask


def count_calls(modules, run):
    """How often each module's forward runs during `run()`."""
    calls = [0] * len(modules)
    handles = []
    for index, module in enumerate(modules):

        def hook(*_, index=index):
            calls[index] += 1

        handles.append(module.register_forward_hook(hook))
    run()
    for handle in handles:
        handle.remove()
    return calls


def filled_cache(model, batch_size=2, length=9):
    with torch.no_grad():
        return model(tiny_ids(batch_size, length), use_cache=True).past_key_values


@pytest.mark.parametrize("num_loops", [1, 2, 4])
@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_one_new_token_costs_one_pass_with_the_shift_and_one_per_loop_without(row, num_loops):
    model = tiny_model(num_loops=num_loops, **ABLATION_ROWS[row])
    cache = filled_cache(model)
    calls = count_calls(list(model.model.layers), lambda: model(tiny_ids(2, 1), past_key_values=cache))
    assert calls == [1 if model.config.loop_shift else num_loops] * 2


def test_a_prompt_costs_one_pass_per_loop():
    model = tiny_model(num_loops=3)
    assert count_calls(list(model.model.layers), lambda: model(tiny_ids(2, 9))) == [3, 3]


def record_sdpa(monkeypatch):
    """Every call of the kernel as (query shape, key shape)."""
    calls, kernel = [], functional.scaled_dot_product_attention

    def recorded(query, key, *args, **kwargs):
        calls.append((tuple(query.shape), tuple(key.shape)))
        return kernel(query, key, *args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", recorded)
    return calls


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("num_loops", [1, 2, 4])
@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_every_step_takes_the_fused_kernel(row, num_loops, padded):
    """The other one writes all scores to memory; `sdpa` takes it, say, for queries whose numbers lie apart."""
    model = tiny_model(num_loops=num_loops, **ABLATION_ROWS[row])
    for batch_size in (1, 2):
        mask = torch.ones(batch_size, 10, dtype=torch.long)
        mask[0, :3] = int(not padded)
        with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where it cannot be taken
            cache = model(tiny_ids(batch_size, 9), attention_mask=mask[:, :9], use_cache=True).past_key_values
            model(tiny_ids(batch_size, 1), attention_mask=mask, past_key_values=cache)


@pytest.mark.parametrize("padded", [False, True])
def test_decoding_reads_the_shared_keys_once_and_never_expands_them(monkeypatch, padded):
    model = tiny_model(num_loops=3, num_attention_heads=8, num_key_value_heads=2, num_hidden_layers=1)
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[0, : 3 if padded else 0] = 0
    cache = model(tiny_ids(2, 9), attention_mask=mask[:, :9], use_cache=True).past_key_values
    calls = record_sdpa(monkeypatch)
    model(tiny_ids(2, 1), attention_mask=mask, past_key_values=cache)
    shared = ((2, 2, 3 * 4, 8), (2, 2, 10, 8))  # 2 KV heads; 3 loops of 4 query heads are rows of each
    windows = ((2, 2 * 2, 4, 8), (2, 2 * 2, 4, 8))  # 2 later loops of 2 KV heads, 4 keys each, in one call
    assert calls == [shared, windows]


def test_without_the_shift_each_loop_reads_alone(monkeypatch):
    model = tiny_model(num_loops=3, loop_shift=False, num_hidden_layers=1)
    cache = filled_cache(model)
    calls = record_sdpa(monkeypatch)
    model(tiny_ids(2, 1), past_key_values=cache)
    assert [key[2] for _, key in calls] == [10, 10, 4, 10, 4]


@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_eager_and_sdpa_agree(dtype, row):
    tolerance = {torch.float32: 1e-4, torch.float16: 0.1, torch.bfloat16: 0.8}[dtype]  # some rounding steps at 4
    eager, sdpa = (
        tiny_model(num_loops=3, attn_implementation=name, **ABLATION_ROWS[row]).to(dtype) for name in ("eager", "sdpa")
    )
    input_ids, mask = tiny_ids(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[0, :4] = 0
    with torch.no_grad():
        expected = eager(input_ids, attention_mask=mask).logits
        actual = sdpa(input_ids, attention_mask=mask).logits
        assert expected.dtype == actual.dtype == dtype
        assert expected.isfinite().all()
        torch.testing.assert_close(actual[mask.bool()], expected[mask.bool()], rtol=0, atol=tolerance)
        caches = [model(input_ids[:, :11], attention_mask=mask[:, :11], use_cache=True) for model in (eager, sdpa)]
        for model, output in zip((eager, sdpa), caches, strict=True):
            cache = output.past_key_values
            decoded = model(input_ids[:, 11:], attention_mask=mask, past_key_values=cache).logits
            torch.testing.assert_close(decoded, expected[:, 11:], rtol=0, atol=tolerance)


def test_the_implementation_can_be_changed_on_a_loaded_model():
    model, input_ids = tiny_model(num_loops=3), tiny_ids(1, 9)
    expected = model(input_ids).logits
    model.set_attn_implementation("eager")
    output = model(input_ids, output_attentions=True)
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-5)
    assert len(output.attentions) == 2


def two_dim_mask(module, query, key, value, attention_mask, scaling, sliding_window=None, is_causal=None, **kwargs):
    """The contract of the flash kernels: grouped heads, a 2D mask over the keys, causal from the lower right."""
    calls.append((query.shape[1], key.shape[1], sliding_window))
    num_queries, num_keys = query.shape[2], key.shape[2]
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    rows = torch.arange(num_keys - num_queries, num_keys)[:, None]
    columns = torch.arange(num_keys)[None]
    visible = torch.ones(num_queries, num_keys, dtype=torch.bool)
    if module.is_causal if is_causal is None else is_causal:
        visible = columns <= rows
    if sliding_window is not None:
        visible = visible & (columns > rows - sliding_window)
    if attention_mask is not None:
        assert num_queries in (1, num_keys) or bool(attention_mask[:, -num_queries:].all())
        visible = visible & attention_mask[:, None, None].bool()
    output = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scaling)
    return output.transpose(1, 2), None


calls: list[tuple] = []
AttentionInterface.register("two_dim_mask", two_dim_mask)
AttentionMaskInterface.register("two_dim_mask", flash_attention_mask)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_a_kernel_with_the_contract_of_flash_attention_gives_the_same(row, padded):
    flash, sdpa = (
        tiny_model(num_loops=3, attn_implementation=name, **ABLATION_ROWS[row]) for name in ("two_dim_mask", "sdpa")
    )
    input_ids, mask = tiny_ids(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[0, : 4 if padded else 0] = 0
    with torch.no_grad():
        expected = sdpa(input_ids, attention_mask=mask).logits
        actual = flash(input_ids, attention_mask=mask).logits
        torch.testing.assert_close(actual[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-4)
        cache = flash(input_ids[:, :9], attention_mask=mask[:, :9], use_cache=True).past_key_values
        for column in range(9, 12):
            calls.clear()
            token, seen = input_ids[:, column : column + 1], mask[:, : column + 1]
            decoded = flash(token, attention_mask=seen, past_key_values=cache).logits
            torch.testing.assert_close(decoded, expected[:, column : column + 1], rtol=0, atol=1e-4)
            if row == "gated_window":
                assert len(calls) == 2 * 2, "per layer one call for the shared keys and one for all windows"


def test_attention_goes_through_the_registry_with_the_window_and_the_callers_arguments():
    seen = []

    def spy(module, query, key, value, attention_mask, **kwargs):
        seen.append(kwargs)
        return query.transpose(1, 2), None

    AttentionInterface.register("spy", spy)
    AttentionMaskInterface.register("spy", sdpa_mask)
    model = tiny_model(num_loops=2, num_hidden_layers=1, attn_implementation="spy")
    lengths = torch.tensor([0, 9])
    model(tiny_ids(1, 9), cu_seq_lens_q=lengths, use_cache=False)
    assert [kwargs.get("sliding_window") for kwargs in seen] == [None, None, 4]  # loop 0, loop 1 shared, loop 1 window
    for kwargs in seen:
        assert kwargs["cu_seq_lens_q"] is lengths
        assert kwargs["scaling"] == 8**-0.5
        assert kwargs["position_ids"].shape == (1, 9)
    assert all(name in AttentionInterface() for name in ("flash_attention_2", "flash_attention_3", "flex_attention"))


def test_attention_dropout_is_applied_in_training_only():
    model, input_ids = tiny_model(num_loops=2, attention_dropout=0.5), tiny_ids(1, 12)
    plain = tiny_model(num_loops=2)
    assert torch.equal(model(input_ids).logits, plain(input_ids).logits)
    model.train()
    assert not torch.allclose(model(input_ids).logits, model(input_ids).logits, atol=1e-3)
