"""`generate()` goes on from a filled cache, or says why it cannot: what the cache holds is compared once, at first."""

import pytest
import torch
from tiny import tiny_ids, tiny_model

from modeling_plt import PLTCache, PLTStaticCache
from modeling_plt.names_plt import NEW, THEIRS
from modeling_plt.refusals_plt import can_read

FAMILIES = ("dense", "experts", "core")

MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 1},
    "beams": {"num_beams": 2},
    "returned sequences": {"do_sample": True, "top_k": 1, "num_return_sequences": 2},
    "chunked": {"prefill_chunk_size": 2},
    "chunked by one": {"prefill_chunk_size": 1},
}
GREEDY = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 4}
# older releases of transformers feed a prompt in chunks from its start again, whatever the cache holds
CHUNKS_GO_ON = THEIRS == NEW


def num_rows(kwargs) -> int:
    return kwargs.get("num_beams", 1) * kwargs.get("num_return_sequences", 1)


def filled(model, tokens, static=False, **kwargs):
    cache = PLTStaticCache(model.config, 40) if static else PLTCache(model.config)
    with torch.no_grad():
        model(tokens, past_key_values=cache, **kwargs)
    return cache


def never_free(monkeypatch):
    """As on an accelerator, where reading a value waits for the device: nothing is read for a single token."""

    def reads(length, num_tokens):
        return isinstance(length, int) or (num_tokens > 1 and can_read(length, num_tokens))

    for module in ("sequence_plt", "refusals_plt"):
        monkeypatch.setattr(f"modeling_plt.{module}.can_read", reads)


@pytest.fixture(params=[False, True], ids=["CPU", "accelerator"])
def device(request, monkeypatch):
    if request.param:
        never_free(monkeypatch)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_held", [5, 9])
def test_a_cache_of_other_tokens_than_those_before_the_last_is_refused(num_held, mode, static, device):
    kwargs = GREEDY | MODES[mode]
    model, tokens = tiny_model(num_loops=2), tiny_ids(1, 9)
    cache = filled(model, tokens[:, :num_held].expand(num_rows(kwargs), -1), static)
    with pytest.raises(ValueError, match=rf"`past_key_values` holds {num_held} tokens, .*mask.* 9"):
        model.generate(tokens[:, 8:], attention_mask=torch.ones(1, 9), past_key_values=cache, **kwargs)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_held, num_given", [(9, 5), (1, 1), (12, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_cache_of_the_whole_prompt_or_more_is_refused(masked, num_held, num_given, mode, static):
    kwargs = GREEDY | MODES[mode] | ({"attention_mask": torch.ones(1, num_given)} if masked else {})
    model, tokens = tiny_model(num_loops=2), tiny_ids(1, 12)
    cache = filled(model, tokens[:, :num_held].expand(num_rows(kwargs), -1), static)
    with pytest.raises(ValueError, match=rf"`past_key_values` holds {num_held} tokens, the prompt {num_given}"):
        model.generate(tokens[:, :num_given], past_key_values=cache, **kwargs)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("num_held", [8, 9])
def test_a_cache_of_all_the_embeddings_or_more_is_refused(num_held, static):
    model, tokens = tiny_model(num_loops=2), tiny_ids(1, 9)
    embeds = model.get_input_embeddings()(tokens[:, :8])
    cache = filled(model, tokens[:, :num_held], static)
    with pytest.raises(ValueError, match=rf"`past_key_values` holds {num_held} tokens, the prompt 8"):
        model.generate(inputs_embeds=embeds, past_key_values=cache, **GREEDY)


@pytest.mark.parametrize("kind", ["prompt_lookup_num_tokens", "assistant_model"])
def test_drafts_after_a_filled_cache_stay_refused(kind):
    model, tokens = tiny_model(num_loops=2), tiny_ids(1, 9)
    kwargs = {kind: 3 if kind == "prompt_lookup_num_tokens" else tiny_model(num_loops=1)}
    with pytest.raises(NotImplementedError, match="cannot continue from a filled `past_key_values`"):
        model.generate(
            tokens[:, 8:], attention_mask=torch.ones(1, 9), past_key_values=filled(model, tokens[:, :5]), **kwargs
        )


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("mode", ["greedy", "sampling", "beams", "chunked by one"])
def test_positions_that_do_not_follow_the_cached_ones_are_refused(mode, static, device):
    """The lengths fit, the positions do not: the cache was filled from another position on."""
    kwargs = GREEDY | MODES[mode]
    model, tokens = tiny_model(num_loops=2), tiny_ids(1, 9).repeat(num_rows(kwargs), 1)
    cache = filled(model, tokens[:, :8], static, position_ids=torch.arange(8)[None] + 7)
    with pytest.raises(ValueError, match=r"holds 8 tokens and ends at positions \[14.*start at \[(8|0)"):
        model.generate(tokens[:1], past_key_values=cache, **kwargs)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("mode", ["greedy", "beams", "returned sequences", "chunked"])
@pytest.mark.parametrize("num_new", [1, 4])
@pytest.mark.parametrize("given", ["all", "new", "all, no mask", "embeddings"])
@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
def test_a_conversation_goes_on(given, num_new, mode, static, padded):
    kwargs = GREEDY | MODES[mode]
    if given == "embeddings" and mode == "chunked":
        pytest.skip("transformers cuts ids into chunks, not embeddings")
    if padded and given in ("all, no mask", "embeddings"):
        pytest.skip("pads need their mask")
    model = tiny_model(num_loops=3).double()
    tokens, mask = tiny_ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    if padded:
        mask[1, :3] = 0
    expected = model.generate(tokens, attention_mask=mask, **kwargs)[:, 9:]
    rows, num_held = num_rows(kwargs), 9 - num_new
    held = mask[:, :num_held].repeat_interleave(rows, dim=0) if padded else None
    cache = filled(model, tokens[:, :num_held].repeat_interleave(rows, dim=0), static, attention_mask=held)
    inputs = {
        "all": {"input_ids": tokens, "attention_mask": mask},
        "new": {"input_ids": tokens[:, num_held:], "attention_mask": mask},
        "all, no mask": {"input_ids": tokens},
        "embeddings": {"inputs_embeds": model.get_input_embeddings()(tokens)},
    }[given]
    if mode == "chunked" and not CHUNKS_GO_ON:
        with pytest.raises(ValueError, match="cached|start at"):
            model.generate(**inputs, past_key_values=cache, **kwargs)
        return
    generated = model.generate(**inputs, past_key_values=cache, **kwargs)
    assert torch.equal(generated[:, -4:], expected)


class CountedReads(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts how often a number is read out of a tensor, which on an accelerator waits for it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_a_decoded_token_reads_nothing(monkeypatch):
    """One comparison at the first step, none later: what more tokens cost is transformers' own."""
    never_free(monkeypatch)
    model, tokens = tiny_model(num_loops=2), tiny_ids(1, 9)
    counts = []
    for num_steps in (2, 12):
        cache = filled(model, tokens[:, :8])
        prepared = model.prepare_inputs_for_generation(
            tokens,
            next_sequence_length=1,
            past_key_values=cache,
            position_ids=torch.arange(9)[None],
            is_first_iteration=True,
        )
        with CountedReads() as reads:
            model(**prepared)
            for position in range(9, 9 + num_steps):
                model(tokens[:, :1], past_key_values=cache, position_ids=torch.tensor([[position]]))
        counts.append(reads.count)
    assert counts[0] > 0
    assert counts[1] == counts[0]


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_loops_of_ones_own_are_compared_at_their_first_step(static, device):
    model, tokens = tiny_model(num_loops=2), tiny_ids(1, 9)
    cache = filled(model, tokens[:, :5], static)
    with pytest.raises(ValueError, match=r"holds 5 tokens and ends at positions \[4\].*start at \[8\]"):
        model(
            **model.prepare_inputs_for_generation(
                tokens,
                next_sequence_length=1,
                past_key_values=cache,
                position_ids=torch.arange(9)[None],
                is_first_iteration=True,
            )
        )


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_generation_code_of_ones_own_is_compared_at_its_first_step(static, device):
    """As `custom_generate` of a hub folder, which need not say which step is the first."""

    def generate(model, input_ids, **kwargs):
        return model(input_ids[:, -1:], past_key_values=kwargs[THEIRS], position_ids=kwargs["position_ids"][:, -1:])

    model, tokens = tiny_model(num_loops=2), tiny_ids(1, 9)
    cache = filled(model, tokens[:, :5], static)
    with pytest.raises(ValueError, match=r"holds 5 tokens and ends at positions \[4\].*start at \[8\]"):
        model.generate(tokens, past_key_values=cache, custom_generate=generate)


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("num_new", [1, 3])
def test_a_forward_whose_positions_do_not_follow_is_refused(num_new, static):
    model, tokens = tiny_model(num_loops=2), tiny_ids(1, 9)
    cache = filled(model, tokens[:, :5], static)
    with pytest.raises(ValueError, match=r"holds 5 tokens and ends at positions \[4\].*start at \[0\]"):
        model(tokens[:, :num_new], past_key_values=cache, position_ids=torch.arange(num_new)[None])
