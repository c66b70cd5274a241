"""Random small models, paddings and chunkings: cached = uncached = alone = reference."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ReferencePLT
from three_stages import ADAPTER
from tiny import EXPERTS, tiny_ids, tiny_model

from modeling_plt import PLTCache, PLTStaticCache


@st.composite
def stages(draw):
    """Layers before, in and after the loop, and how they are joined."""
    before, looped, after = draw(st.integers(0, 1)), draw(st.integers(1, 2)), draw(st.integers(0, 1))
    fields = {
        "num_hidden_layers": before + looped + after,
        "num_prelude_layers": before,
        "num_coda_layers": after,
        "coda_norm": after > 0 and draw(st.booleans()),
    }
    if draw(st.booleans()):
        return fields | ADAPTER | {"initial_state": draw(st.sampled_from(["none", "zeros", "prelude"]))}
    return fields | {
        "embedding_scale": draw(st.sampled_from([0.3, 1.0])),
        "hidden_scale": draw(st.sampled_from([0.4, 1.0])),
        "learned_scales": draw(st.booleans()),
    }


@st.composite
def experts(draw, num_layers):
    """No experts, or experts in some layer."""
    if draw(st.booleans()):
        return {}
    return EXPERTS | {
        "norm_topk_prob": draw(st.booleans()),
        "shared_expert_gate": draw(st.booleans()),
        "mlp_only_layers": [draw(st.integers(0, num_layers - 1))] if num_layers > 1 and draw(st.booleans()) else None,
    }


@st.composite
def configs(draw):
    num_key_value_heads, of_stages = draw(st.sampled_from([1, 2])), draw(stages())
    of_experts = draw(experts(of_stages["num_hidden_layers"]))
    return (
        of_stages
        | of_experts
        | {
            "num_loops": draw(st.integers(1, 4)),
            "trained_loops": draw(st.sampled_from([None, 4])),
            "loop_shift": draw(st.booleans()),
            "loop_attention": draw(st.sampled_from(["gated_window", "gated_window", "shared", "own"])),
            "sliding_window": draw(st.integers(1, 12)),
            "gate_input": draw(st.sampled_from(["hidden", "query"])),
            "loop_norm": draw(st.booleans()),
            "norm_placement": draw(st.sampled_from(["pre", "sandwich", "output", "residual"])),
            "qk_norm": draw(st.sampled_from(["none", "head", "whole"])),
            "embedding_multiplier": draw(st.sampled_from([1.0, 3.0])),
            "num_key_value_heads": num_key_value_heads,
            "num_attention_heads": num_key_value_heads * draw(st.integers(1, 3)),
            "hidden_size": 16,
            "seed": draw(st.integers(0, 3)),
        }
    )


def in_float64(config):
    return tiny_model(**config).double()


@st.composite
def chunks(draw, length):
    sizes = []
    while sum(sizes) < length:
        sizes.append(draw(st.integers(1, length - sum(sizes))))
    return sizes


@st.composite
def padded_batches(draw):
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    longest = max(lengths) + draw(st.integers(0, 2))
    mask = torch.zeros(len(lengths), longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, longest - length :] = 1
    return tiny_ids(len(lengths), longest, draw(st.integers(0, 9))), mask, draw(chunks(longest))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(config=configs(), batch=padded_batches(), give_positions=st.booleans())
def test_cached_chunks_of_a_padded_batch_equal_each_row_alone(config, batch, give_positions):
    model = in_float64(config)
    input_ids, mask, sizes = batch
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache, logits, start = PLTCache(model.config), [], 0
    with torch.no_grad():
        for chunk in input_ids.split(sizes, dim=1):
            end = start + chunk.shape[1]
            given_positions = {"position_ids": positions[:, start:end]} if give_positions else {}
            output = model(chunk, attention_mask=mask[:, :end], past_key_values=cache, **given_positions)
            start, logits = end, [*logits, output.logits]
        logits = torch.cat(logits, dim=1)
        together = model(input_ids, attention_mask=mask, use_cache=False).logits
        reference = ReferencePLT(model.config, model.state_dict())
        for row, real in enumerate(mask.bool()):
            alone = model(input_ids[row, real][None], use_cache=False).logits[0]
            expected = torch.from_numpy(reference.logits(input_ids[row, real].tolist()))
            tolerance = {"rtol": 0, "atol": 1e-5 * expected.abs().max()}
            torch.testing.assert_close(alone, expected, **tolerance)
            torch.testing.assert_close(together[row, real], expected, **tolerance)
            torch.testing.assert_close(logits[row, real], expected, **tolerance)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(config=configs(), data=st.data())
def test_every_way_through_a_model_equals_the_reference(config, data):
    """Pruned, loop after loop, in a static cache; and what each loop would say."""
    model, length = in_float64(config), data.draw(st.integers(1, 12))
    input_ids, num_kept = tiny_ids(1, length, data.draw(st.integers(0, 9))), data.draw(st.integers(1, length))
    states = torch.from_numpy(ReferencePLT(model.config, model.state_dict()).loop_states(input_ids[0].tolist()))
    expected = states[-1] @ model.lm_head.weight.detach().T
    tolerance = {"rtol": 0, "atol": 1e-5 * expected.abs().max()}
    model.one_pass = data.draw(st.booleans())
    with torch.no_grad():
        pruned = model(input_ids, logits_to_keep=num_kept, use_cache=False).logits[0]
        torch.testing.assert_close(pruned, expected[-num_kept:], **tolerance)
        cache = PLTStaticCache(model.config, length + 2)
        sizes = data.draw(chunks(length))
        static = [model(chunk, past_key_values=cache).logits for chunk in input_ids.split(sizes, dim=1)]
        torch.testing.assert_close(torch.cat(static, dim=1)[0], expected, **tolerance)
        found = model(input_ids, output_loop_hidden_states=True, use_cache=False).loop_hidden_states
        torch.testing.assert_close(torch.cat(found), states, rtol=0, atol=1e-5 * states.abs().max())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(config=configs(), is_checkpointing=st.booleans(), padded=st.booleans())
def test_every_parameter_has_a_gradient(config, is_checkpointing, padded):
    model, input_ids = in_float64(config).train(), tiny_ids(2, 12)
    mask = torch.ones_like(input_ids)
    mask[0, : 5 * padded] = 0
    if is_checkpointing:
        model.gradient_checkpointing_enable()
    model(input_ids, attention_mask=mask, labels=input_ids.masked_fill(mask == 0, -100)).loss.backward()
    # one loop of a model that was trained with four leaves some parameters unread: their gradients are 0, but there
    has_unread = config["num_loops"] == 1 and config["trained_loops"] is not None
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or has_unread, name


@settings(max_examples=40, deadline=None, derandomize=True)
@given(config=configs(), lengths=st.lists(st.integers(1, 8), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_packed_documents_equal_documents_alone(config, lengths, seed):
    model = in_float64(config)
    input_ids = tiny_ids(1, sum(lengths), seed)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    with torch.no_grad():
        packed = model(input_ids, position_ids=positions, use_cache=False).logits
        alone = [model(document, use_cache=False).logits for document in input_ids.split(lengths, dim=1)]
    expected = torch.cat(alone, dim=1)
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-5 * expected.abs().max())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(config=configs(), data=st.data())
def test_drafts_taken_back_leave_no_trace(config, data):
    model = in_float64(config)
    input_ids = tiny_ids(1, 24, data.draw(st.integers(0, 9)))
    cache = PLTCache(model.config)
    cache.activate_past_recording()
    with torch.no_grad():
        expected = model(input_ids, use_cache=False).logits
        start = data.draw(st.integers(1, 6))
        model(input_ids[:, :start], past_key_values=cache)
        while start < 24:
            draft = input_ids[:, start : start + data.draw(st.integers(1, 5))].clone()
            num_wrong = data.draw(st.integers(0, draft.shape[1]))
            draft[:, draft.shape[1] - num_wrong :] = 3
            logits = torch.cat([model(ids, past_key_values=cache).logits for ids in draft.split(3, dim=1)], dim=1)
            cache.crop(-num_wrong)
            num_right = draft.shape[1] - num_wrong
            tolerance = {"rtol": 0, "atol": 1e-9 + 1e-6 * expected.abs().max()}
            torch.testing.assert_close(logits[:, :num_right], expected[:, start : start + num_right], **tolerance)
            start += num_right
            if num_right == 0:  # go on with one right token, so that every example ends
                model(input_ids[:, start : start + 1], past_key_values=cache)
                start += 1
                cache.crop(0)
