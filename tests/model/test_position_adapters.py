# SPDX-License-Identifier: Apache-2.0
"""Adapters for which it matters which positions a call holds: aLoRA counts, Lily averages, X-LoRA weighs tokens."""

import peft
import pytest
import torch
from peft import get_peft_model
from tiny import tiny_ids, tiny_model
from x_lora import x_lora

INVOCATION = [[7], [7, 8]]
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def with_lora(num_loops=3, **kwargs):
    """LoRA that says something; the same weights with and without an invocation."""
    kwargs |= {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "init_lora_weights": False}
    torch.manual_seed(0)
    return get_peft_model(tiny_model(num_loops=num_loops), peft.LoraConfig(r=4, **kwargs)).eval()


def prompt_with(invocation, before=5, after=2, seed=1):
    ids = tiny_ids(1, before + after, seed) % 50 + 9  # the invocation is nowhere else
    return torch.cat((ids[:, :before], torch.tensor([invocation]), ids[:, before:]), dim=1)


def generate(model, input_ids, **kwargs):
    """Greedy tokens and logits, `[B, 6]` and `[B, 6, V]`."""
    mask = kwargs.pop("attention_mask", torch.ones_like(input_ids))
    arguments = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    out = model.generate(
        input_ids=input_ids, attention_mask=mask, output_logits=True, disable_compile=True, **arguments, **kwargs
    )
    return out.sequences[:, input_ids.shape[1] :], torch.stack(out.logits, dim=1)


@torch.no_grad()
def adapted_from(model, input_ids, start):
    """What LoRA gives if the tokens before `start` went through the bare model: logits `[1, 6, V]`."""
    with model.disable_adapter():
        cache = model(input_ids[:, :start], use_cache=True).past_key_values
    logits, ids = [], input_ids[:, start:]
    for _ in range(6):
        logits.append(model(ids, past_key_values=cache).logits[:, -1])
        ids = logits[-1].argmax(dim=-1, keepdim=True)
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("invocation", INVOCATION, ids=["one token", "two tokens"])
@pytest.mark.parametrize("after", [0, 2], ids=["at the end", "before others"])
@pytest.mark.parametrize("cache", [None, "static"], ids=["dynamic", "static"])
@pytest.mark.parametrize("num_loops", [1, 2, 3])
def test_tokens_from_the_invocation_on_are_adapted_in_every_loop(num_loops, cache, after, invocation):
    input_ids = prompt_with(invocation, after=after)
    _, logits = generate(
        with_lora(num_loops, alora_invocation_tokens=invocation), input_ids, cache_implementation=cache
    )
    torch.testing.assert_close(logits, adapted_from(with_lora(num_loops), input_ids, 5), rtol=0, atol=1e-4)


def test_padded_rows_are_adapted_as_each_is_alone():
    model = with_lora(alora_invocation_tokens=[7])
    rows = [prompt_with([7], before=5, after=2), prompt_with([7], before=2, after=1, seed=2)]
    input_ids = torch.cat((rows[0], torch.nn.functional.pad(rows[1], (4, 0))))
    mask = torch.ones_like(input_ids)
    mask[1, :4] = 0
    together, _ = generate(model, input_ids, attention_mask=mask)
    assert torch.equal(together, torch.cat([generate(model, row)[0] for row in rows]))


@pytest.mark.parametrize("pads", [slice(6, 8), slice(3, 4)], ids=["after the tokens", "between them"])
@pytest.mark.parametrize("num_loops", [1, 3])
def test_pads_that_move_what_is_counted_are_refused(num_loops, pads):
    model, input_ids = with_lora(num_loops, alora_invocation_tokens=[7]), prompt_with([7])
    mask = torch.ones_like(input_ids)
    mask[:, pads] = 0
    with pytest.raises(NotImplementedError, match="pads must come before the tokens"):
        model(input_ids, attention_mask=mask)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_has_the_same_gradients_or_is_refused(use_reentrant):
    """PEFT's hooks are gone after a layer's first backward: recomputed loops would not be adapted."""
    input_ids, gradients = prompt_with([7]), []
    for checkpointing in (False, True):
        model = with_lora(1, alora_invocation_tokens=[7]).train()
        model.enable_input_require_grads()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model(input_ids, labels=input_ids, use_cache=False).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*gradients)
    model = with_lora(2, alora_invocation_tokens=[7]).train()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    with pytest.raises(NotImplementedError, match="every loop has one"):
        model(input_ids, labels=input_ids, use_cache=False)


def test_an_adapter_that_replaces_the_states_between_layers_is_refused():
    model = get_peft_model(tiny_model(num_loops=3), peft.ShadowConfig(task_type="CAUSAL_LM", r=2))
    with pytest.raises(NotImplementedError, match="`ShadowCarrier`"):
        model(tiny_ids(2, 9))


def with_lily(**overrides):
    torch.manual_seed(0)
    config = peft.LilyConfig(r=4, target_modules=PROJECTIONS, task_type="CAUSAL_LM", init_weights=False)
    return get_peft_model(tiny_model(**overrides), config).eval()


@torch.no_grad()
def test_lily_averages_over_the_tokens_of_a_call_and_never_over_loops():
    one_pass, in_turn = with_lily(num_loops=3), with_lily(num_loops=3, one_pass=False)
    for first, second in zip(generate(one_pass, tiny_ids(2, 9)), generate(in_turn, tiny_ids(2, 9)), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


@torch.no_grad()
def test_lily_averages_over_all_tokens_whichever_logits_are_kept():
    model, input_ids = with_lily(num_loops=3), tiny_ids(2, 40)
    last = model(input_ids, logits_to_keep=1).logits
    torch.testing.assert_close(last, model(input_ids).logits[:, -1:], rtol=0, atol=1e-5)


@torch.no_grad()
def test_x_lora_weighs_each_token_whichever_logits_are_kept(tmp_path):
    model, input_ids = x_lora(tmp_path), tiny_ids(2, 9)
    tokens, logits = generate(model, input_ids)
    for step in range(6):
        full = model(torch.cat((input_ids, tokens[:, :step]), dim=1)).logits[:, -1]
        torch.testing.assert_close(logits[:, step], full, rtol=0, atol=1e-5)


@torch.no_grad()
def test_x_lora_weighs_padded_rows_as_each_alone_or_refuses(tmp_path):
    model, input_ids, mask = x_lora(tmp_path), tiny_ids(1, 9), torch.ones(1, 9, dtype=torch.long)
    mask[:, :3] = 0
    padded = model(input_ids, attention_mask=mask).logits[:, 3:]
    torch.testing.assert_close(padded, model(input_ids[:, 3:]).logits, rtol=0, atol=1e-5)
    with pytest.raises(NotImplementedError, match="X-LoRA .* pads must come before the tokens"):
        model(input_ids, attention_mask=mask.flip(1))
