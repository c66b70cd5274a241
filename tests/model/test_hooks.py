# SPDX-License-Identifier: Apache-2.0
"""Hooks inside the layers, as tools for steering and patching set them: what they reach in prefill and in decoding."""

import pytest
import torch
from tiny import tiny_ids, tiny_model

FAMILIES = ("dense", "experts", "core")

VECTOR = 5 * torch.linspace(-1, 1, 32)


def steer_every_loop(layer, inputs, output):
    """As in docs/use.md."""
    loops = inputs[3].loops
    states = output[0].unflatten(1, (len(loops), -1))
    states[:, :, -1:] += VECTOR


def steer_from_the_end(layer, inputs, output):
    states = output[0] if isinstance(output, tuple) else output
    states[:, -1:] += VECTOR


@torch.no_grad()
def steered(model, module, hook, cut, pads=0):
    """Logits `[B, V]` of the last of 9 tokens, which alone is steered, in a forward of the tokens from `cut` on."""
    input_ids, mask = tiny_ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, :pads] = 0
    cache = model(input_ids[:, :cut], attention_mask=mask[:, :cut], use_cache=True).past_key_values if cut else None
    handle = module.register_forward_hook(hook)
    logits = model(input_ids[:, cut:], attention_mask=mask, past_key_values=cache, logits_to_keep=1).logits[:, -1]
    handle.remove()
    return logits


@pytest.mark.parametrize("pads", [0, 3])
@pytest.mark.parametrize("loop_attention", ["gated_window", "shared", "own"])
@pytest.mark.parametrize("num_loops", [1, 2, 3])
@pytest.mark.parametrize(
    "hook, one_pass, part",
    [(steer_every_loop, True, ""), (steer_every_loop, False, ""), (steer_from_the_end, False, "")]
    + [(steer_from_the_end, False, part) for part in ("mlp", "self_attn", "self_attn.q_proj", "input_layernorm")],
)
def test_decoding_is_steered_as_prefill_is(hook, one_pass, part, num_loops, loop_attention, pads):
    model = tiny_model(num_loops=num_loops, loop_attention=loop_attention, one_pass=one_pass)
    module = model.model.layers[model.config.looped_stage.layers.start].get_submodule(part)
    prefill, chunk, decode = (steered(model, module, hook, cut, pads) for cut in (0, 6, 8))
    torch.testing.assert_close(decode, prefill, rtol=0, atol=1e-4)
    torch.testing.assert_close(chunk, prefill, rtol=0, atol=1e-4)


def test_a_hook_that_counts_from_the_end_reaches_the_last_loop_only_in_one_pass():
    model = tiny_model(num_loops=3)
    layer = model.model.layers[model.config.looped_stage.layers.start]
    prefill, decode = (steered(model, layer, steer_from_the_end, cut) for cut in (0, 8))
    assert (prefill - decode).abs().max() > 0.01


@pytest.mark.parametrize("keep_all", [False, True])
def test_generate_shows_hooks_all_positions_if_states_are_asked_for(keep_all):
    model, lengths = tiny_model(num_loops=2, sliding_window=2), []
    model.model.layers[-1].register_forward_hook(lambda layer, inputs, output: lengths.append(output[0].shape[1]))
    model.generate(tiny_ids(1, 9), max_new_tokens=1, output_hidden_states=keep_all, return_dict_in_generate=True)
    num_calls = len(model.config.stages[-1].loops)  # of a coda, one
    assert lengths == ([9, 9] if keep_all else [4, 1])[-num_calls:]
