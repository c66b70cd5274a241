"""A row of a padded batch equals the row alone; packed documents equal the documents alone."""

import pytest
import torch
from tiny import ABLATION_ROWS, tiny_ids, tiny_model

from modeling_plt import PLTCache

FAMILIES = ("dense", "experts", "core")

TOLERANCE = {"rtol": 0, "atol": 1e-4}  # float32; a leak moves logits by 0.01 and more
LENGTHS = [9, 3, 1, 6]
# what callers write into the positions of left pads; None leaves positions to the model
PAD_POSITIONS = [None, 0, 1, -1, "consecutive"]


def batch(lengths, side):
    """Ids and mask `[B, max(lengths)]`, padded with 0 on one side."""
    longest = max(lengths)
    input_ids, mask = tiny_ids(len(lengths), longest), torch.zeros(len(lengths), longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, slice(longest - length, None) if side == "left" else slice(length)] = 1
    return input_ids * mask, mask


def positions_of(mask, pad_position):
    if pad_position is None:
        return None
    if pad_position == "consecutive":  # 0, 1, 2, ... whatever is padded
        return torch.arange(mask.shape[1]).expand_as(mask)
    return (mask.cumsum(-1) - 1).masked_fill(mask == 0, pad_position)


def alone(model, input_ids, mask):
    with torch.no_grad():
        rows = [row[real.bool()][None] for row, real in zip(input_ids, mask, strict=True)]
        return [model(row, use_cache=False).logits[0] for row in rows]


def assert_real_tokens_equal(logits, mask, expected):
    assert logits.isfinite().all(), "outputs at pads mean nothing but must be finite"
    for row, real, row_alone in zip(logits, mask, expected, strict=True):
        torch.testing.assert_close(row[real.bool()], row_alone, **TOLERANCE)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("pad_position", PAD_POSITIONS, ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_padded_rows_equal_rows_alone(row, side, pad_position, attn_implementation):
    model = tiny_model(num_loops=3, attn_implementation=attn_implementation, **ABLATION_ROWS[row])
    input_ids, mask = batch(LENGTHS, side)
    with torch.no_grad():
        logits = model(input_ids, attention_mask=mask, position_ids=positions_of(mask, pad_position)).logits
    assert_real_tokens_equal(logits, mask, alone(model, input_ids, mask))


@pytest.mark.parametrize("pad_position", PAD_POSITIONS, ids=str)
@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize("sizes", [[4, 5], [7, 2], [8, 1], [1] * 9, [2, 3, 4]], ids=str)
def test_left_padded_batch_can_be_split_anywhere(sizes, row, pad_position):
    model = tiny_model(num_loops=3, **ABLATION_ROWS[row])
    input_ids, mask = batch(LENGTHS, "left")
    positions = positions_of(mask, pad_position)
    cache, logits, seen = PLTCache(model.config), [], 0
    for chunk in input_ids.split(sizes, dim=1):
        start, seen = seen, seen + chunk.shape[1]
        chunk_positions = None if positions is None else positions[:, start:seen]
        with torch.no_grad():
            output = model(chunk, attention_mask=mask[:, :seen], position_ids=chunk_positions, past_key_values=cache)
        logits.append(output.logits)
    assert_real_tokens_equal(torch.cat(logits, dim=1), mask, alone(model, input_ids, mask))


@pytest.mark.parametrize("mask_type", [torch.bool, torch.float32, torch.uint8, torch.int64])
def test_whatever_is_not_zero_in_a_mask_is_a_real_token(mask_type):
    model = tiny_model(num_loops=3)
    input_ids, mask = batch(LENGTHS, "left")
    with torch.no_grad():
        expected = model(input_ids, attention_mask=mask).logits
        for value in (1, 2, 255):
            assert torch.equal(model(input_ids, attention_mask=(mask * value).to(mask_type)).logits, expected)


@pytest.mark.compile
def test_compiled_code_equals_the_interpreter():
    """Tracing cannot read values: packed documents are told by their positions alone, padded rows by their mask."""
    model = tiny_model(num_loops=2, num_hidden_layers=1)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    input_ids, mask = batch(LENGTHS, "left")
    documents, packed, positions = pack([5, 1, 9, 2])
    expected = torch.cat([model(document, use_cache=False).logits for document in documents], dim=1)
    with torch.no_grad():
        padded = compiled(input_ids, attention_mask=mask, use_cache=False).logits
        assert_real_tokens_equal(padded, mask, alone(model, input_ids, mask))
        logits = compiled(packed, position_ids=positions, use_cache=False).logits
        torch.testing.assert_close(logits, expected, **TOLERANCE)


@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_the_exported_program_takes_any_batch_and_length(row):
    model = tiny_model(num_loops=2, **ABLATION_ROWS[row])
    sizes = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("length", min=2, max=400)}
    program = torch.export.export(
        model,
        (),
        {"input_ids": tiny_ids(2, 9), "use_cache": False},
        dynamic_shapes={"input_ids": sizes, "use_cache": None},
        strict=False,
    )
    input_ids = tiny_ids(3, 23)
    logits = program.module()(input_ids=input_ids, use_cache=False).logits
    torch.testing.assert_close(logits, model(input_ids, use_cache=False).logits, **TOLERANCE)


def test_states_of_pads_do_not_reach_real_tokens():
    """Whatever a pad's token is, real tokens do not change."""
    model = tiny_model(num_loops=3)
    input_ids, mask = batch(LENGTHS, "left")
    other_ids = torch.where(mask.bool(), input_ids, 17)
    with torch.no_grad():
        logits, other = (model(ids, attention_mask=mask).logits for ids in (input_ids, other_ids))
    torch.testing.assert_close(logits[mask.bool()], other[mask.bool()], rtol=0, atol=0)


def pack(lengths):
    documents = [tiny_ids(1, length, seed=length) for length in lengths]
    positions = [torch.arange(length)[None] for length in lengths]
    return documents, torch.cat(documents, dim=1), torch.cat(positions, dim=1)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize("masked", [False, True])
def test_packed_documents_equal_documents_alone(masked, row, use_cache, attn_implementation):
    model = tiny_model(num_loops=3, attn_implementation=attn_implementation, **ABLATION_ROWS[row])
    documents, packed, positions = pack([5, 1, 9, 2])
    expected = torch.cat([model(document, use_cache=False).logits for document in documents], dim=1)
    mask = torch.ones_like(packed) if masked else None
    logits = model(packed, attention_mask=mask, position_ids=positions, use_cache=use_cache).logits
    torch.testing.assert_close(logits, expected, **TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_packed_documents_with_padding_equal_documents_alone(side):
    model = tiny_model(num_loops=3)
    documents, packed, positions = pack([5, 4, 3])
    mask = torch.ones_like(packed)
    amount = (3, 0) if side == "left" else (0, 3)
    packed, mask, positions = (torch.nn.functional.pad(tensor, amount) for tensor in (packed, mask, positions))
    expected = torch.cat([model(document, use_cache=False).logits for document in documents], dim=1)
    logits = model(packed, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(logits[mask.bool()][None], expected, **TOLERANCE)


def test_rows_may_pack_different_documents():
    model = tiny_model(num_loops=3)
    first, second = pack([5, 7]), pack([8, 4])
    logits = model(torch.cat((first[1], second[1])), position_ids=torch.cat((first[2], second[2]))).logits
    for row, (documents, _, _) in zip(logits, (first, second), strict=True):
        expected = torch.cat([model(document, use_cache=False).logits for document in documents], dim=1)
        torch.testing.assert_close(row[None], expected, **TOLERANCE)


def test_packed_documents_and_caches_do_not_mix_silently():
    model = tiny_model(num_loops=3)
    _, packed, positions = pack([5, 4])
    output = model(packed, position_ids=positions, use_cache=True)
    with pytest.raises(NotImplementedError, match="cannot be continued"):
        model(tiny_ids(1, 1), position_ids=torch.tensor([[4]]), past_key_values=output.past_key_values)
    filled = model(tiny_ids(1, 4), use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"ends at positions \[3\] .* start at \[0\]"):
        model(packed, position_ids=positions, past_key_values=filled)


@pytest.mark.parametrize("pad_position", [0, 1, -1])
@pytest.mark.parametrize("use_cache", [False, True])
def test_left_padding_told_by_positions_alone_equals_rows_alone(use_cache, pad_position):
    model = tiny_model(num_loops=3)
    for lengths in (LENGTHS, [9, 8]):
        input_ids, mask = batch(lengths, "left")
        with torch.no_grad():
            output = model(input_ids, position_ids=positions_of(mask, pad_position), use_cache=use_cache)
        assert_real_tokens_equal(output.logits, mask, alone(model, input_ids, mask))
        if use_cache:
            with pytest.raises(NotImplementedError, match="cannot be continued: .* without an `attention_mask`"):
                model(input_ids[:, :1], past_key_values=output.past_key_values)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_loops", [1, 3])
def test_left_padding_gives_numbers_in_every_format(num_loops, dtype):
    model, input_ids = tiny_model(num_loops=num_loops, attn_implementation="eager").to(dtype), tiny_ids(2, 11)
    mask = torch.ones_like(input_ids)
    mask[0, :6] = 0
    with torch.no_grad():
        logits = model(input_ids, attention_mask=mask).logits[0, 6:]
        alone = model(input_ids[:1, 6:]).logits[0]
    tolerance = {torch.float64: 1e-5, torch.float32: 2e-5, torch.bfloat16: 0.2, torch.float16: 0.02}[dtype]
    torch.testing.assert_close(logits, alone, rtol=0, atol=tolerance)  # eager's softmax is float32, so is rounding
