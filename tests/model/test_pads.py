"""Wherever pads stand, each row equals itself alone: a token follows the last real token before it."""

import pytest
import torch
from reference import ReferencePLT
from tiny import ABLATION_ROWS, tiny_ids, tiny_model

from modeling_plt import PLTCache, PLTStaticCache

FAMILIES = ("dense", "experts", "core")

TOLERANCE = {"rtol": 0, "atol": 6e-5}  # float32 summation order

# a row each: pads on the left, on the right, inside, everywhere, nowhere, a real token first, last, alone
MASKS = {
    "left": ["000001111111", "001111111111", "111111111111"],
    "right": ["111111100000", "111111111100", "111111111111"],
    "inner": ["111000111111", "110111011111", "100000000001"],
    "mixed": ["001100110010", "111111100000", "000000000100"],
}
CHUNKS = {"prefill": [12], "chunks": [5, 4, 3], "decode": [4] + [1] * 8, "single": [1] * 12}
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}


def batch(kind):
    """Token ids and mask `[3, 12]`; pads are ids that would matter if they were seen."""
    mask = torch.tensor([[int(number) for number in row] for row in MASKS[kind]])
    return tiny_ids(3, 12), mask


def run(model, input_ids, mask, chunks, cache):
    """Logits `[B, T, V]` of a prompt that comes in chunks."""
    logits, start = [], 0
    for size in chunks:
        new = input_ids[:, start : start + size]
        start += size
        logits.append(model(new, attention_mask=mask[:, :start], past_key_values=cache).logits)
    return torch.cat(logits, dim=1)


def assert_rows_equal_themselves_alone(logits, model, input_ids, mask):
    for row, ids, real in zip(logits, input_ids, mask.bool(), strict=True):
        torch.testing.assert_close(row[real], model(ids[real][None], use_cache=False).logits[0], **TOLERANCE)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", MASKS)
@torch.no_grad()
def test_every_row_equals_itself_alone(kind, attn_implementation):
    model = tiny_model(num_loops=3, attn_implementation=attn_implementation)
    input_ids, mask = batch(kind)
    logits = model(input_ids, attention_mask=mask, use_cache=False).logits
    assert_rows_equal_themselves_alone(logits, model, input_ids, mask)


@pytest.mark.parametrize("kind", MASKS)
def test_rows_match_the_reference(kind):
    model = tiny_model(num_loops=3)
    reference = ReferencePLT(model.config, model.state_dict())
    input_ids, mask = batch(kind)
    logits = model(input_ids, attention_mask=mask).logits.detach().double().numpy()
    for row, ids, real in zip(logits, input_ids, mask.bool(), strict=True):
        expected = torch.as_tensor(reference.logits(ids[real].tolist()))
        torch.testing.assert_close(torch.as_tensor(row)[real], expected, **TOLERANCE)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("row", ABLATION_ROWS)
@torch.no_grad()
def test_caches_take_pads_in_any_chunk(row, kind, chunks, static):
    model = tiny_model(num_loops=3, **ABLATION_ROWS[row])
    input_ids, mask = batch(kind)
    cache = PLTStaticCache(model.config, 20) if static else PLTCache(model.config)
    logits = run(model, input_ids, mask, CHUNKS[chunks], cache)
    assert_rows_equal_themselves_alone(logits, model, input_ids, mask)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("row", ABLATION_ROWS)
@torch.no_grad()
def test_a_pruned_prefill_continues_each_row(row, kind, static):
    """The last position's logits are those of a row's last real token, pad or not, and the cache is complete."""
    model = tiny_model(num_loops=3, sliding_window=3, **ABLATION_ROWS[row])
    input_ids, mask = batch(kind)
    more = tiny_ids(3, 4, seed=5)
    cache = PLTStaticCache(model.config, 20) if static else PLTCache(model.config)
    for start, size in ((0, 5), (5, 7)):
        stop = start + size
        last = model(
            input_ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, logits_to_keep=1
        ).logits
    logits = [last]
    for column in range(4):
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        logits.append(model(more[:, column : column + 1], attention_mask=mask, past_key_values=cache).logits)
    logits = torch.cat(logits, dim=1)
    for row_logits, ids, new, real in zip(logits, input_ids, more, mask.bool(), strict=True):
        alone = torch.cat((ids[real[:12]], new))
        expected = model(alone[None], use_cache=False).logits[0, -5:]
        torch.testing.assert_close(row_logits, expected, **TOLERANCE)


@torch.no_grad()
def test_a_pads_output_is_that_of_the_last_real_token_before_it():
    model = tiny_model(num_loops=2)
    input_ids, mask = batch("mixed")
    output = model(input_ids, attention_mask=mask, output_loop_hidden_states=True, output_hidden_states=True)
    for states in (output.logits, *output.loop_hidden_states, *output.hidden_states):
        for row, real in zip(states, mask.bool(), strict=True):
            columns = (real.long().cumsum(0) - 1).clamp(min=0)
            first = int(real.long().argmax())
            assert torch.equal(row[first:], row[real][columns][first:])
    short = model(input_ids, attention_mask=mask, logits_to_keep=3).logits
    torch.testing.assert_close(short, output.logits[:, -3:], **TOLERANCE)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("kind", MASKS)
@torch.no_grad()
def test_a_pads_output_may_be_that_of_a_token_in_an_earlier_chunk(kind, static):
    model = tiny_model(num_loops=2)
    input_ids, mask = batch(kind)
    cache = PLTStaticCache(model.config, 20) if static else PLTCache(model.config)
    logits = run(model, input_ids, mask, [3, 1, 4, 4], cache)
    for row, real in zip(logits, mask.bool(), strict=True):
        columns = (real.long().cumsum(0) - 1).clamp(min=0)
        first = int(real.long().argmax())
        torch.testing.assert_close(row[first:], row[real][columns][first:], **TOLERANCE)


@pytest.mark.parametrize("kind", MASKS)
@torch.no_grad()
def test_recorded_states_and_weights_are_in_the_given_order(kind):
    model = tiny_model(num_loops=3, attn_implementation="eager")
    input_ids, mask = batch(kind)
    settings = {"output_hidden_states": True, "output_attentions": True, "output_loop_hidden_states": True}
    output = model(input_ids, attention_mask=mask, **settings)
    for number, (ids, real) in enumerate(zip(input_ids, mask.bool(), strict=True)):
        alone = model(ids[real][None], **settings)
        for name in ("hidden_states", "loop_hidden_states"):
            for states, expected in zip(getattr(output, name), getattr(alone, name), strict=True):
                torch.testing.assert_close(states[number, real], expected[0], **TOLERANCE)
        for weights, expected in zip(output.attentions, alone.attentions, strict=True):
            torch.testing.assert_close(weights[number][:, real][:, :, real], expected[0], **TOLERANCE)
            assert (weights[number][:, real][:, :, ~real] == 0).all()


@pytest.mark.parametrize("kind", MASKS)
def test_the_loss_of_a_row_is_that_of_its_real_tokens(kind):
    model = tiny_model(num_loops=3).double()
    input_ids, mask = batch(kind)
    # the first token of a row alone is predicted by nothing, and that after left padding would be by a pad
    labels = input_ids.masked_fill((mask == 0) | (mask.cumsum(1) == 1), -100)
    for ids, real, wanted in zip(input_ids, mask, labels, strict=True):
        if real.sum() > 1:
            gradients = []
            for inputs in (
                {"input_ids": ids[None], "attention_mask": real[None], "labels": wanted[None]},
                {"input_ids": ids[real.bool()][None], "labels": ids[real.bool()][None]},
            ):
                model.zero_grad()
                loss = model(**inputs, use_cache=False).loss
                loss.backward()
                gradients.append([loss, *(parameter.grad.clone() for parameter in model.parameters())])
            for padded, expected in zip(*gradients, strict=True):
                torch.testing.assert_close(padded, expected, rtol=0, atol=1e-5)  # norms round to float32


def new_tokens(model, input_ids, mask, **settings):
    """What `generate` appends, `[B, 8]`, for a batch."""
    output = model.generate(input_ids, attention_mask=mask, **(GREEDY | settings))
    return output[:, input_ids.shape[1] :]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 5},
        {"prefill_chunk_size": 1},
        {"prefill_chunk_size": 4, "cache_implementation": "static"},
        {"num_beams": 3},
        {"num_beams": 2, "cache_implementation": "static"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", MASKS)
def test_generate_appends_what_it_would_to_each_row_alone(kind, settings):
    model = tiny_model(num_loops=3)
    input_ids, mask = batch(kind)
    tokens = new_tokens(model, input_ids, mask, **settings)
    alone_settings = {name: value for name, value in settings.items() if name == "num_beams"}
    for row, ids, real in zip(tokens, input_ids, mask.bool(), strict=True):
        alone = ids[real][None]
        assert torch.equal(row[None], new_tokens(model, alone, torch.ones_like(alone), **alone_settings))


@pytest.mark.parametrize("how", ["assistant", "lookup"])
@pytest.mark.parametrize("kind", MASKS)
def test_drafts_after_pads_change_nothing(kind, how):
    model, assistant = tiny_model(num_loops=3), tiny_model(num_loops=2, seed=3)
    settings = {"assistant_model": assistant} if how == "assistant" else {"prompt_lookup_num_tokens": 3}
    input_ids, mask = batch(kind)
    for ids, real in zip(input_ids, mask, strict=True):
        alone = ids[real.bool()][None]
        expected = new_tokens(model, alone, torch.ones_like(alone))
        assert torch.equal(new_tokens(model, ids[None], real[None], **settings), expected)


def test_an_assistant_may_write_its_pad():
    """A token that equals the pad is real where it was generated."""
    model, assistant = tiny_model(num_loops=2), tiny_model(num_loops=2, seed=3)
    input_ids = tiny_ids(1, 6)
    for pad in model.generate(input_ids, max_new_tokens=30, min_new_tokens=30, do_sample=False)[0, 6:].unique():
        settings = GREEDY | {"pad_token_id": int(pad), "max_new_tokens": 20, "min_new_tokens": 20}
        mask = torch.ones_like(input_ids)
        expected = model.generate(input_ids, attention_mask=mask, **settings)
        assistant.generation_config.pad_token_id = int(pad)
        output = model.generate(input_ids, attention_mask=mask, assistant_model=assistant, **settings)
        assert torch.equal(output, expected)


@pytest.mark.parametrize("kind", MASKS)
def test_a_conversation_continues_with_pads_in_every_turn(kind):
    """Two batches of prompts, padded anywhere, with the answers to the first between them."""
    model = tiny_model(num_loops=3)
    input_ids, mask = batch(kind)
    settings = GREEDY | {"return_dict_in_generate": True}
    output = model.generate(input_ids, attention_mask=mask, past_key_values=PLTCache(model.config), **settings)
    second, second_mask = tiny_ids(3, 12, seed=7), mask.flip(0)
    tokens = torch.cat((output.sequences, second), dim=1)
    mask = torch.cat((mask, torch.ones(3, 8, dtype=torch.long), second_mask), dim=1)
    answer = new_tokens(model, tokens, mask, past_key_values=output.past_key_values)
    for row, ids, real in zip(answer, tokens, mask.bool(), strict=True):
        alone = ids[real][None]
        assert torch.equal(row[None], new_tokens(model, alone, torch.ones_like(alone)))


@torch.no_grad()
def test_rows_move_with_their_pads():
    model = tiny_model(num_loops=3)
    input_ids, mask = batch("mixed")
    cache = PLTCache(model.config)
    model(input_ids, attention_mask=mask, past_key_values=cache)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    input_ids, mask = input_ids[[2, 0, 0]], torch.nn.functional.pad(mask[[2, 0, 0]], (0, 2), value=1)
    more = tiny_ids(3, 2, seed=4)
    logits = model(more, attention_mask=mask, past_key_values=cache).logits
    for row, ids, new, real in zip(logits, input_ids, more, mask.bool(), strict=True):
        expected = model(torch.cat((ids[real[:12]], new))[None]).logits[0, -2:]
        torch.testing.assert_close(row, expected, **TOLERANCE)


@pytest.mark.parametrize("num_removed", range(10))
@pytest.mark.parametrize("kind", MASKS)
@torch.no_grad()
def test_pads_and_tokens_are_taken_back_as_they_came(kind, num_removed):
    model = tiny_model(num_loops=3)
    input_ids, mask = batch(kind)
    cache = PLTCache(model.config)
    model(input_ids[:, :3], attention_mask=mask[:, :3], past_key_values=cache)
    cache.activate_past_recording()
    for start, stop in ((3, 7), (7, 8), (8, 12)):
        model(input_ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache)
    cache.crop(-min(num_removed, 9))
    stop = 12 - num_removed
    more, mask = tiny_ids(3, 3, seed=6), torch.nn.functional.pad(mask[:, :stop], (0, 3), value=1)
    logits = model(more, attention_mask=mask, past_key_values=cache).logits
    for row, ids, new, real in zip(logits, input_ids[:, :stop], more, mask.bool(), strict=True):
        expected = model(torch.cat((ids[real[:stop]], new))[None], use_cache=False).logits[0, -3:]
        torch.testing.assert_close(row, expected, **TOLERANCE)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@torch.no_grad()
def test_a_token_that_was_cached_cannot_become_a_pad(static):
    model, input_ids = tiny_model(num_loops=2), tiny_ids(2, 6)
    cache = PLTStaticCache(model.config, 9) if static else PLTCache(model.config)
    model(input_ids[:, :5], attention_mask=torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]), past_key_values=cache)
    for mask in ([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], [[0, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]], None):
        mask = None if mask is None else torch.tensor(mask)
        with pytest.raises(ValueError, match=r"holds \[1, 0\] pads in its batch, but the `attention_mask` marks \["):
            model(input_ids[:, 5:], attention_mask=mask, past_key_values=cache)


def test_compiled_code_takes_pads_anywhere():
    model = tiny_model(num_loops=2)
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for kind in MASKS:
            input_ids, mask = batch(kind)
            logits = compiled(input_ids, attention_mask=mask, use_cache=False).logits
            assert_rows_equal_themselves_alone(logits, model, input_ids, mask)


def test_a_compiled_single_token_must_be_real():
    model, input_ids = tiny_model(num_loops=2), tiny_ids(1, 6)
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    cache = PLTStaticCache(model.config, 9)
    with torch.no_grad():
        model(input_ids[:, :5], past_key_values=cache)
        with pytest.raises(RuntimeError, match="must not be a pad"):
            compiled(input_ids[:, 5:], attention_mask=torch.tensor([[1, 1, 1, 1, 1, 0]]), past_key_values=cache)


@torch.no_grad()
def test_pads_between_packed_documents_are_in_none_of_them():
    model, input_ids = tiny_model(num_loops=3), tiny_ids(1, 7)
    mask, positions = torch.tensor([[1, 1, 1, 0, 1, 1, 1]]), torch.tensor([[0, 1, 2, 0, 0, 1, 2]])
    logits = model(input_ids, attention_mask=mask, position_ids=positions).logits[0]
    for document in (slice(0, 3), slice(4, 7)):
        torch.testing.assert_close(logits[document], model(input_ids[:, document]).logits[0], **TOLERANCE)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("num_loops", [1, 3])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_recorded_states_and_weights_have_the_gradients_of_each_row_alone(attn_implementation, num_loops, kind):
    """What saliency and probing tools read: a copy outside of the graph would have none."""
    model = tiny_model(num_loops=num_loops, attn_implementation=attn_implementation).double()
    input_ids, mask = batch(kind)

    def recorded(ids, **kwargs):
        output = model(ids, output_hidden_states=True, output_attentions=attn_implementation == "eager", **kwargs)
        parts = [*output.hidden_states, *(output.attentions or ())]
        for part in parts:
            part.retain_grad()
        real = kwargs.get("attention_mask", torch.ones_like(ids)).bool()
        output.logits[real].square().sum().backward()
        return [part.grad for part in parts]

    found = recorded(input_ids, attention_mask=mask)
    for number, (ids, real) in enumerate(zip(input_ids, mask.bool(), strict=True)):
        if real.sum() == 1:
            continue  # alone, its loops run together, and what is recorded is part of what is read
        for grad, expected in zip(found, recorded(ids[real][None]), strict=True):
            grad = grad[number][:, real][:, :, real] if grad.dim() == 4 else grad[number, real]
            is_seen = torch.ones_like(expected[0], dtype=torch.bool)
            if expected.dim() == 4:
                is_seen = is_seen.tril()  # weights that a mask sets to 0 have gradients that lead nowhere
            torch.testing.assert_close(grad[is_seen], expected[0][is_seen], rtol=1e-6, atol=1e-9)
