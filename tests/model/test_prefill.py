"""Pruned prefill: fewer positions, the same logits and the same cache."""

import pytest
import torch
from reference import ReferencePLT
from tiny import ABLATION_ROWS, tiny_config, tiny_ids, tiny_model

from modeling_plt import PLTCache
from modeling_plt.blocks_plt import visible_in_blocks
from modeling_plt.modeling_plt import PLTDecoderLayer
from modeling_plt.passes_plt import needed_positions

FAMILIES = ("dense", "experts", "core")

ONE_STAGE = {"num_prelude_layers": 0, "num_coda_layers": 0}  # for numbers that are written out
TOLERANCE = {"rtol": 0, "atol": 2e-5}  # float32 summation order


def states_of(cache):
    """Everything a cache holds, as tensors."""
    layers = [(layer.keys, layer.values) for layer in cache.all_layers]
    return [state for pair in layers for state in pair] + [*cache.carry.states, cache.carry.positions]


def assert_same_cache(cache, expected, hidden=None):
    assert cache.get_seq_length() == expected.get_seq_length()
    for layer, other in zip(cache.all_layers, expected.all_layers, strict=True):
        assert layer.get_seq_length() == other.get_seq_length()
    for state, other in zip(states_of(cache), states_of(expected), strict=True):
        assert state.shape == other.shape
        if hidden is not None and state.dim() == 4:  # columns of pads hold whatever
            visible = ~hidden[:, hidden.shape[1] - state.shape[2] :]
            state, other = state.transpose(1, 2)[visible], other.transpose(1, 2)[visible]
        torch.testing.assert_close(state, other, **TOLERANCE)


def counted(monkeypatch):
    """A list that gets `(loop, positions in, positions out)` of every call of a layer."""
    calls, forward = [], PLTDecoderLayer.forward

    def count(self, hidden_states, key, value, run, **kwargs):
        output = forward(self, hidden_states, key, value, run, **kwargs)
        calls.append((run.loops.start, hidden_states.shape[1], output[0].shape[1]))
        return output

    monkeypatch.setattr(PLTDecoderLayer, "forward", count)
    return calls


def test_the_formula_of_the_specification():
    config = tiny_config(num_loops=3, num_hidden_layers=4, sliding_window=5, **ONE_STAGE)
    # backwards: 2 outputs, four layers of 4 positions each, one for the shift, and so on
    assert needed_positions(config, 100, 2) == [
        [
            [100, 100, 100, 100, 36],
            [35, 31, 27, 23, 19],
            [18, 14, 10, 6, 2],
        ]
    ]
    assert needed_positions(config, 20, 2) == [[[20] * 5, [20, 20, 20, 20, 19], [18, 14, 10, 6, 2]]]
    assert needed_positions(config, 20, 0) == [[[20] * 5] * 3]
    loop = tiny_config(num_loops=2, num_hidden_layers=2, **ABLATION_ROWS["loop"], **ONE_STAGE)
    assert needed_positions(loop, 20, 1) == [[[20, 20, 20], [20, 20, 1]]]
    shared = tiny_config(num_loops=3, num_hidden_layers=2, **ABLATION_ROWS["shared"], **ONE_STAGE)
    assert needed_positions(shared, 20, 1) == [[[20, 20, 3], [2, 2, 2], [1, 1, 1]]]


def test_long_prompts_cost_what_the_specification_says():
    """LoopCoder-V2's shape, 32k tokens: about 1.02 to 1.03 plain prefills, where two full loops would be 2."""
    config = tiny_config(num_loops=2, num_hidden_layers=14, sliding_window=65, **ONE_STAGE)
    (spans,) = needed_positions(config, 32768, 1)
    assert 1.01 < sum(sum(span[:-1]) for span in spans) / (14 * 32768) < 1.03  # positions with keys and values
    assert 0.94 < sum(sum(span[1:]) for span in spans) / (14 * 32768) < 0.95  # with queries and MLP


@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize("num_loops", [1, 2, 3])
@pytest.mark.parametrize("logits_to_keep", [1, 3])
def test_each_loop_computes_the_positions_of_the_formula(monkeypatch, row, num_loops, logits_to_keep):
    model = tiny_model(num_loops=num_loops, **ABLATION_ROWS[row])
    calls = counted(monkeypatch)
    model(tiny_ids(2, 40), logits_to_keep=logits_to_keep)
    expected = [
        (loop, span[n], span[n + 1])
        for spans in needed_positions(model.config, 40, logits_to_keep)
        for loop, span in enumerate(spans)
        for n in range(len(span) - 1)
    ]
    assert calls == expected
    assert calls[-1][2] == logits_to_keep
    if row == "gated_window" and num_loops == 3 and len(model.config.stages) == 1:  # a coda sees all of the last loop
        assert sum(positions for _, positions, _ in calls) < 0.6 * 3 * 80


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize("num_loops", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 9, 12, 13, 40])
@pytest.mark.parametrize("logits_to_keep", [1, 2, "all"])
def test_pruned_equals_unpruned_in_logits_and_cache(logits_to_keep, length, num_loops, row, attn_implementation):
    model = tiny_model(num_loops=num_loops, attn_implementation=attn_implementation, **ABLATION_ROWS[row])
    input_ids = tiny_ids(2, length, seed=length)
    expected = model(input_ids)
    num_logits = length if logits_to_keep == "all" else logits_to_keep
    output = model(input_ids, logits_to_keep=num_logits)
    torch.testing.assert_close(output.logits, expected.logits[:, -num_logits:], **TOLERANCE)
    assert_same_cache(output.past_key_values, expected.past_key_values)


@pytest.mark.parametrize("num_loops", [2, 3])
def test_pruned_logits_match_the_reference(num_loops):
    model = tiny_model(num_loops=num_loops, num_hidden_layers=3, sliding_window=3).double()
    input_ids = tiny_ids(1, 50)
    expected = torch.from_numpy(ReferencePLT(model.config, model.state_dict()).logits(input_ids[0].tolist()))
    with torch.no_grad():
        logits = model(input_ids, logits_to_keep=2).logits[0]
    torch.testing.assert_close(logits, expected[-2:], **TOLERANCE)  # rotary angles are float32


@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize("chunks", [[1, 30], [2, 30], [20, 1, 17], [25, 25], [3, 4, 40, 9]], ids=str)
def test_pruned_prefill_behind_a_cache(row, chunks):
    model, input_ids = tiny_model(num_loops=3, **ABLATION_ROWS[row]), tiny_ids(2, sum(chunks))
    expected = model(input_ids)
    cache, done = None, 0
    for chunk in input_ids.split(chunks, dim=1):
        done += chunk.shape[1]
        output = model(chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        torch.testing.assert_close(output.logits[:, 0], expected.logits[:, done - 1], **TOLERANCE)
    assert_same_cache(cache, expected.past_key_values)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize("split", [0, 12, 30])
def test_pruned_prefill_with_left_padding(row, split, attn_implementation):
    model = tiny_model(num_loops=3, attn_implementation=attn_implementation, **ABLATION_ROWS[row])
    lengths = [40, 23, 39, 3, 1]
    input_ids = tiny_ids(len(lengths), 40)
    mask = torch.stack([(torch.arange(40) >= 40 - length).long() for length in lengths])
    expected = model(input_ids, attention_mask=mask)
    cache = None
    if split:
        cache = model(input_ids[:, :split], attention_mask=mask[:, :split], logits_to_keep=1).past_key_values
    output = model(input_ids[:, split:], attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=2)
    torch.testing.assert_close(output.logits[:, 1], expected.logits[:, -1], **TOLERANCE)
    assert_same_cache(output.past_key_values, expected.past_key_values, hidden=mask == 0)
    for row_idx, length in enumerate(lengths):
        alone = model(input_ids[row_idx : row_idx + 1, 40 - length :]).logits[0, -1]
        torch.testing.assert_close(output.logits[row_idx, 1], alone, **TOLERANCE)


@pytest.mark.parametrize("num_loops", [2, 3])
def test_prompts_of_eight_thousand_tokens(num_loops):
    model = tiny_model(num_loops=num_loops, num_hidden_layers=3, sliding_window=64, max_position_embeddings=8192)
    input_ids = tiny_ids(1, 8192)
    with torch.inference_mode():
        expected = model(input_ids)
        output = model(input_ids, logits_to_keep=1)
        torch.testing.assert_close(output.logits[:, 0], expected.logits[:, -1], **TOLERANCE)
        assert_same_cache(output.past_key_values, expected.past_key_values)
        # and in two chunks, of which the second is pruned behind a full window
        cache = model(input_ids[:, :5000], logits_to_keep=1).past_key_values
        logits = model(input_ids[:, 5000:], past_key_values=cache, logits_to_keep=1).logits
        torch.testing.assert_close(logits[:, 0], expected.logits[:, -1], **TOLERANCE)


def test_what_asks_for_every_position_gets_it(monkeypatch):
    model, input_ids = tiny_model(num_loops=2, num_coda_layers=0), tiny_ids(1, 30)  # a coda would read loop 0 out too
    calls = counted(monkeypatch)
    full = [(loop, 30, 30) for stage in model.config.stages for loop in stage.loops for _ in stage.layers]

    def is_full(**kwargs):
        calls.clear()
        output = model(input_ids, **kwargs)
        assert calls == full
        return output

    is_full()
    assert is_full(logits_to_keep=1, output_hidden_states=True).hidden_states[1].shape[1] == 30
    assert is_full(logits_to_keep=1, output_loop_hidden_states=True).loop_hidden_states[0].shape[1] == 30
    assert is_full(logits_to_keep=torch.tensor([3, 5])).logits.shape[1] == 2
    model.train()
    is_full(logits_to_keep=1)
    model.eval()
    cache = PLTCache(model.config)
    cache.activate_past_recording()
    is_full(logits_to_keep=1, past_key_values=cache)
    cache.crop(-7)  # any of the tokens may be taken back
    logits = model(input_ids[:, 23:], past_key_values=cache).logits
    torch.testing.assert_close(logits, model(input_ids).logits[:, 23:], **TOLERANCE)


@pytest.mark.parametrize("window", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("num_past", [0, 1, 5])
def test_the_blocks_of_a_window_cover_what_a_dense_mask_shows(window, num_past):
    """Each query's visible columns, read from the blocks, against the definition."""
    starts = torch.tensor([[0] * 11, [0, 0, 0, 0, 0, 5, 5, 7, 8, 8, 8]]) + num_past * torch.tensor([[0], [1]])
    reach = min(window - 1, num_past + 11 - window)
    blocks = -(-11 // window)
    mask = visible_in_blocks(starts, torch.tensor(num_past + 10), window, blocks, window, reach)
    assert mask.shape == (blocks, 2, 1, window, window + reach)
    for row in range(2):
        for token in range(11):
            query = num_past + token
            wanted = set(range(max(query - window + 1, int(starts[row, token])), query + 1))
            place = token + blocks * window - 11  # counted from the first block's start
            first_key = num_past + 11 - (blocks - place // window) * window - reach
            seen = mask[place // window, row, 0, place % window].nonzero().flatten() + first_key
            assert set(seen.tolist()) == wanted


def test_the_window_of_a_long_prompt_costs_its_length_times_the_window(monkeypatch):
    sizes = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, **kwargs):
        sizes.append(query.shape[0] * query.shape[2] * key.shape[2])
        return attention(query, key, value, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    tiny_model(num_loops=2, sliding_window=8, **ONE_STAGE)(tiny_ids(1, 400))
    assert sizes == [400 * 400] * 2 + [400 * 400, 400 * 15] * 2
