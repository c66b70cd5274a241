"""The cache changes nothing in the logits, holds what the formula says, and can be moved, copied and rewound."""

import copy

import pytest
import torch
from tiny import ABLATION_ROWS, tiny_ids, tiny_model

from modeling_plt import PLTCache, PLTStaticCache

FAMILIES = ("dense", "experts", "core")

TOLERANCE = {"rtol": 0, "atol": 1e-9}  # float64; norms and rotary angles run in float32, but alike on both sides


def run_chunks(model, input_ids, sizes, cache=None):
    """Logits of `input_ids` fed in chunks, and the cache they leave."""
    logits = []
    with torch.no_grad():
        for chunk in input_ids.split(sizes, dim=1):
            output = model(chunk, past_key_values=cache, use_cache=True)
            cache, logits = output.past_key_values, [*logits, output.logits]
    return torch.cat(logits, dim=1), cache


def uncached(model, input_ids):
    with torch.no_grad():
        return model(input_ids, use_cache=False).logits


@pytest.mark.parametrize("sizes", [[12], [5, 7], [1] * 12, [11, 1], [1, 11], [4, 1, 1, 3, 1, 2]], ids=str)
@pytest.mark.parametrize("num_loops", [1, 2, 3])
@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_cached_logits_equal_uncached(row, num_loops, sizes):
    model = tiny_model(num_loops=num_loops, **ABLATION_ROWS[row]).double()
    input_ids = tiny_ids(2, 12)
    logits, _ = run_chunks(model, input_ids, sizes)
    torch.testing.assert_close(logits, uncached(model, input_ids), **TOLERANCE)


@pytest.mark.parametrize("sliding_window", [1, 2, 4, 12, 13, 40])
@pytest.mark.parametrize("overrides", [{}, {"loop_norm": False}, {"loop_shift": False}], ids=str)
@pytest.mark.parametrize("sizes", [[6, 7], [1] * 13, [12, 1]], ids=["chunks", "decode", "prefill"])
def test_cached_logits_equal_uncached_for_every_window(sizes, overrides, sliding_window):
    model = tiny_model(num_loops=3, sliding_window=sliding_window, **overrides).double()
    input_ids = tiny_ids(2, 13)
    logits, _ = run_chunks(model, input_ids, sizes)
    torch.testing.assert_close(logits, uncached(model, input_ids), **TOLERANCE)


@pytest.mark.parametrize("num_loops", [1, 2, 4])
@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize("sizes", [[29], [1] * 29, [20, 9]], ids=["prefill", "decode", "chunks"])
def test_cache_takes_the_bytes_of_the_formula(sizes, row, num_loops):
    model = tiny_model(num_loops=num_loops, **ABLATION_ROWS[row])
    config, batch_size, length = model.config, 3, 29
    kv_size = 2 * config.num_key_value_heads * config.head_dim
    own_columns = {"own": length, "shared": 0, "gated_window": config.sliding_window - 1}[config.loop_attention]
    columns = config.num_hidden_layers * length + (num_loops - 1) * len(config.looped_stage.layers) * own_columns
    elements = kv_size * columns
    elements += num_loops * config.hidden_size
    expected = batch_size * (4 * elements + 8)  # float32 states; the carry's position is an int64
    _, cache = run_chunks(model, tiny_ids(batch_size, length), sizes)
    assert cache.nbytes == expected


@pytest.mark.parametrize("sizes", [[300], [1] * 300, [7] * 42 + [6]], ids=["prefill", "decode", "chunks"])
def test_windows_and_carry_never_grow_in_memory(sizes):
    model = tiny_model(num_loops=3, sliding_window=5)
    _, cache = run_chunks(model, tiny_ids(1, 300), sizes)
    column = 2 * 8 * 4  # KV heads, head_dim, bytes
    for loop_cache in cache.later_loops:
        for layer in loop_cache.layers:
            assert layer.keys.shape[-2] == layer.values.shape[-2] == 4
            # what is allocated, not only what is visible
            assert layer.keys.untyped_storage().nbytes() <= 5 * column
            assert layer.values.untyped_storage().nbytes() <= 5 * column
    assert [state.untyped_storage().nbytes() for state in cache.carry.states] == [32 * 4] * 3
    assert cache.carry.positions.untyped_storage().nbytes() == 8


def test_a_cache_continues_twice_when_copied():
    model = tiny_model(num_loops=3).double()
    first, second = tiny_ids(2, 14, seed=1), tiny_ids(2, 14, seed=2)
    second[:, :9] = first[:, :9]
    _, cache = run_chunks(model, first[:, :9], [9])
    fork = copy.deepcopy(cache)
    for input_ids, own_cache in ((first, cache), (second, fork)):
        logits, _ = run_chunks(model, input_ids[:, 9:], [1, 4], own_cache)
        torch.testing.assert_close(logits, uncached(model, input_ids)[:, 9:], **TOLERANCE)


def test_a_reset_cache_starts_anew():
    model = tiny_model(num_loops=3).double()
    _, cache = run_chunks(model, tiny_ids(2, 9, seed=5), [9])
    cache.reset()
    assert cache.get_seq_length() == 0
    input_ids = tiny_ids(3, 8)
    logits, _ = run_chunks(model, input_ids, [4, 1, 3], cache)
    torch.testing.assert_close(logits, uncached(model, input_ids), **TOLERANCE)


@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize(
    "move, rows",
    [
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    ],
    ids=["reorder", "select", "repeat"],
)
def test_rows_move_with_everything_they_left_behind(move, rows, row):
    model = tiny_model(num_loops=3, **ABLATION_ROWS[row]).double()
    prompt, continuation = tiny_ids(3, 9), tiny_ids(len(rows), 5, seed=7)
    _, cache = run_chunks(model, prompt, [9])
    move(cache)
    logits, _ = run_chunks(model, continuation, [1, 1, 3], cache)
    expected = uncached(model, torch.cat((prompt[rows], continuation), dim=1))[:, 9:]
    torch.testing.assert_close(logits, expected, **TOLERANCE)


@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize("sliding_window", [1, 4, 30])
@pytest.mark.parametrize("drafts", [[5], [1, 1, 1, 1, 1], [2, 3]], ids=str)
@pytest.mark.parametrize("num_rejected", range(6))
def test_recorded_tokens_can_be_taken_back(num_rejected, drafts, sliding_window, row):
    model = tiny_model(num_loops=3, sliding_window=sliding_window, **ABLATION_ROWS[row]).double()
    input_ids = tiny_ids(2, 20)
    _, cache = run_chunks(model, input_ids[:, :9], [9])
    cache.activate_past_recording()
    wrong = tiny_ids(2, 5, seed=11)
    wrong[:, : 5 - num_rejected] = input_ids[:, 9 : 14 - num_rejected]
    run_chunks(model, wrong, drafts, cache)
    cache.crop(-num_rejected)
    assert cache.get_seq_length() == 14 - num_rejected
    rest = input_ids[:, 14 - num_rejected :]
    logits, _ = run_chunks(model, rest, [1, rest.shape[1] - 1], cache)
    torch.testing.assert_close(logits, uncached(model, input_ids)[:, 14 - num_rejected :], **TOLERANCE)


def test_crop_ends_a_recording_stretch():
    model = tiny_model(num_loops=3, sliding_window=4)
    cache = PLTCache(model.config)
    cache.activate_past_recording()
    run_chunks(model, tiny_ids(1, 12), [12], cache)
    assert cache.later_loops[0].layers[0].keys.shape[-2] == 12
    cache.crop(0)
    assert cache.later_loops[0].layers[0].keys.shape[-2] == 3
    assert cache.carry.states[0].shape[1] == cache.carry.positions.shape[1] == 1


def test_recording_can_be_stopped():
    model = tiny_model(num_loops=3, sliding_window=4)
    cache = PLTCache(model.config)
    cache.activate_past_recording()
    run_chunks(model, tiny_ids(1, 12), [12], cache)
    cache.stop_past_recording()
    run_chunks(model, tiny_ids(1, 3), [1] * 3, cache)
    fresh = run_chunks(model, tiny_ids(1, 15), [15])[1]
    assert cache.nbytes == fresh.nbytes


@pytest.mark.parametrize("row", ["gated_window", "shared", "shift"])
def test_crop_of_unrecorded_tokens_raises_and_changes_nothing(row):
    model = tiny_model(num_loops=3, **ABLATION_ROWS[row])
    _, cache = run_chunks(model, tiny_ids(1, 9), [9])
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.all_layers]
    with pytest.raises(RuntimeError, match="activate_past_recording"):
        cache.crop(-1)
    assert cache.get_seq_length() == 9
    for layer, (keys, values) in zip(cache.all_layers, before, strict=True):
        assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values)
    for count in (1, -10):
        with pytest.raises(ValueError, match="between -9"):
            cache.crop(count)


def test_crop_to_nothing_starts_anew():
    model = tiny_model(num_loops=3).double()
    cache = PLTCache(model.config)
    cache.activate_past_recording()
    run_chunks(model, tiny_ids(1, 5, seed=3), [5], cache)
    cache.crop(-5)
    model(tiny_ids(1, 4), position_ids=torch.tensor([[0, 1, 0, 1]]), past_key_values=cache)  # packed documents
    cache.crop(-4)
    input_ids = tiny_ids(1, 8)
    logits, _ = run_chunks(model, input_ids, [3, 5], cache)
    torch.testing.assert_close(logits, uncached(model, input_ids), **TOLERANCE)


def test_cache_has_the_shape_transformers_expects():
    model = tiny_model(num_loops=3)
    _, cache = run_chunks(model, tiny_ids(2, 9), [9])
    assert len(cache) == model.config.num_hidden_layers
    assert [tuple(layer.keys.shape) for layer in cache.layers] == [(2, 2, 9, 8)] * len(cache)
    assert cache.is_sliding == [False] * len(cache)
    assert [tuple(state.shape) for state in cache.carry.states] == [(2, 1, 32)] * 3
    assert cache.is_croppable and not PLTStaticCache(model.config, 9).is_croppable


@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize("num_loops", [2, 3])
def test_loop_after_loop_decodes_the_same_with_one_row_at_a_time(row, num_loops):
    model, input_ids = tiny_model(num_loops=num_loops, **ABLATION_ROWS[row]).double(), tiny_ids(1, 20)
    expected = model(input_ids).logits
    rows = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[1]))
    passes = {}
    for model.one_pass in (True, False):
        cache = model(input_ids[:, :9]).past_key_values
        rows.clear()
        for column in range(9, 20):
            logits = model(input_ids[:, column : column + 1], past_key_values=cache).logits
            torch.testing.assert_close(logits[:, 0], expected[:, column], **TOLERANCE)
        passes[model.one_pass] = rows[:]
    assert passes[False] == [1] * (11 * sum(len(stage.layers) * len(stage.loops) for stage in model.config.stages))
    if model.config.loop_shift:
        of_a_token = [len(stage.loops) for stage in model.config.stages for _ in stage.layers]
        assert passes[True] == of_a_token * 11
    else:
        assert passes[True] == passes[False]


@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize(
    "indices",
    [[2, 0], torch.tensor([True, False, True]), torch.tensor([-1, 0]), torch.tensor([0, 0, 2, 1])],
    ids=["list", "mask", "negative", "repeated"],
)
def test_rows_are_selected_as_transformers_selects_them(row, indices):
    model, input_ids = tiny_model(num_loops=3, **ABLATION_ROWS[row]).double(), tiny_ids(3, 9)
    cache = model(input_ids[:, :6], use_cache=True).past_key_values
    cache.batch_select_indices(indices)
    logits = model(input_ids[indices][:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(logits, uncached(model, input_ids)[indices][:, 6:], **TOLERANCE)


def test_selecting_a_row_that_is_not_there_leaves_the_cache_as_it_was():
    model, input_ids = tiny_model(num_loops=3).double(), tiny_ids(3, 9)
    cache = model(input_ids[:, :6], use_cache=True).past_key_values
    with pytest.raises(IndexError):
        cache.batch_select_indices([0, 3])
    logits = model(input_ids[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(logits, uncached(model, input_ids)[:, 6:], **TOLERANCE)


@torch.no_grad()
def test_a_token_without_a_position_is_taken_back_too(monkeypatch):
    # as where a position is not read, because that would wait for the device; on a CPU it is refused
    monkeypatch.setattr("modeling_plt.sequence_plt.can_read", lambda length, num_tokens: num_tokens > 1)
    model, input_ids = tiny_model(num_loops=3), tiny_ids(1, 8)
    cache = PLTCache(model.config)
    cache.activate_past_recording()
    model(input_ids[:, :6], past_key_values=cache)
    model(input_ids[:, 6:7], position_ids=torch.tensor([[-1]]), past_key_values=cache)
    cache.crop(-1)
    logits = model(input_ids[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(logits, model(input_ids).logits[:, 6:], rtol=0, atol=2e-5)  # summation order
