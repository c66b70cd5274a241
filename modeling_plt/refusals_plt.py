# SPDX-License-Identifier: Apache-2.0
"""Refusals of a forward: inputs that do not fit together, and caches that cannot be continued.

B batch, T new tokens, S cached + new.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.generation import GenerationMode
from transformers.generation.continuous_batching import PagedAttentionCache

from .cache_plt import PLTCacheMixin, shape_of
from .configuration_plt import PLTConfig
from .masks_plt import DENSE
from .pads_plt import Pads


def refuse_wrong_inputs(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> None:
    """Refuse anything but one of `input_ids` `[B, T]` and `inputs_embeds` `[B, T, D]`, with at least one token."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Exactly one of `input_ids` and `inputs_embeds` must be given.")
    given: Any = input_ids if inputs_embeds is None else inputs_embeds
    if given.shape[1] == 0:
        raise ValueError(f"`input_ids` must hold at least one token, got {list(given.shape[:2])}.")


def refuse_loops(kwargs: dict[str, Any]) -> None:
    """Refuse a number of loops among the arguments of a forward, where it would be passed on and ignored."""
    if "num_loops" in kwargs:
        raise ValueError(
            "`num_loops` is chosen at load, `from_pretrained(..., num_loops=...)`, or by `model.config.num_loops`, "
            f"and not in a forward or in `generate`, got {kwargs['num_loops']}."
        )


def refuse_missing(config: PLTConfig, has_gates: bool, has_adapter: bool) -> None:
    """Refuse an edit of the config that asks for weights that the model was built without."""
    missing = {
        '`loop_attention="gated_window"` needs gates': config.has_gate and not has_gates,
        '`loop_input="adapter"` needs a matrix': config.has_adapter and not has_adapter,
    }
    for name, is_missing in missing.items():
        if is_missing:
            raise ValueError(
                f"{name}, which this model was built without; load it with this setting, instead of changing its "
                "config."
            )


def refuse_wrong_shapes(
    inputs_embeds: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, num_past: int | Tensor
) -> None:
    """Refuse a mask that is not `[B, S]`, and positions that are not `[B or 1, T]`."""
    batch_size, num_tokens, _ = inputs_embeds.shape
    is_known = can_read(num_past, num_tokens)
    if attention_mask is not None and not (
        attention_mask.dim() == 2
        and attention_mask.shape[0] == batch_size
        and (not is_known or attention_mask.shape[1] == int(num_past) + num_tokens)
    ):
        wanted = [batch_size, int(num_past) + num_tokens] if is_known else [batch_size, "any"]
        raise ValueError(
            "`attention_mask` must be [batch, cached + new tokens] with 1 for real tokens, "
            f"{wanted} here, got {list(attention_mask.shape)}."
        )
    # a comparison of tuples would not tie a traced length to the given one
    if position_ids is not None and not (
        position_ids.dim() == 2 and position_ids.shape[0] in (1, batch_size) and position_ids.shape[1] == num_tokens
    ):
        raise ValueError(
            f"`position_ids` must be [batch, new tokens], {[batch_size, num_tokens]} here, got "
            f"{list(position_ids.shape)}."
        )


def can_read(length: int | Tensor, num_tokens: int) -> bool:
    """Whether a cached length can be read: no tensor can while tracing, or where every token would wait for it."""
    return isinstance(length, int) or (
        not torch.compiler.is_compiling() and (num_tokens > 1 or length.device.type == "cpu")
    )


def refuse_overflow(past_key_values: PLTCacheMixin | None, num_past: int | Tensor, num_tokens: int) -> None:
    room = -1 if past_key_values is None else past_key_values.get_max_length()
    if can_read(num_past, num_tokens) and 0 <= room < num_past + num_tokens:
        raise ValueError(f"The static cache has room for {room} tokens, {int(num_past) + num_tokens} are wanted.")


def refuse_other_pads(
    past_key_values: PLTCacheMixin | None, attention_mask: Tensor | None, num_past: int | Tensor, num_tokens: int
) -> None:
    """Refuse a mask that marks other pads among the cached tokens than those that came as pads."""
    if past_key_values is None or past_key_values.carry.num_pads is None or torch.compiler.is_compiling():
        return
    cached = past_key_values.carry.num_pads
    if attention_mask is not None:
        given = (~attention_mask[:, :-num_tokens]).sum(dim=1, keepdim=True)
    elif can_read(num_past, num_tokens):
        given = torch.zeros_like(cached)
    else:
        return  # reading would wait for the device at every step
    if not torch.equal(given, cached.to(given.device)):
        raise ValueError(
            f"`past_key_values` holds {cached.flatten().tolist()} pads in its batch, but the `attention_mask` marks "
            f"{given.flatten().tolist()} of the cached tokens: it must mark the same ones as before."
        )


def refuse_other_start(ends: Tensor, positions: Tensor, num_past: int | Tensor, are_counted: bool) -> None:
    """Refuse new tokens, counted or at given positions `[B, T]`, that do not continue the cached ones `[B, 1]`."""
    starts = positions.gather(1, (positions >= 0).long().argmax(dim=1, keepdim=True))
    if not ((starts != ends + 1) & (starts >= 0) & (ends >= 0)).any():
        return
    wanted = "give only tokens that follow those in the cache; packed documents belong into one forward without one."
    if are_counted:
        wanted = "the `attention_mask` must mark the pads of the cached tokens, or `position_ids` must be given."
    raise ValueError(
        f"`past_key_values` holds {int(num_past)} tokens and ends at positions {ends.flatten().tolist()} of its "
        f"batch, but the new tokens{' were counted to' * are_counted} start at {starts.flatten().tolist()}: {wanted}"
    )


def refuse_documents_after_others(num_past: int | Tensor) -> None:
    if num_past > 0:
        raise NotImplementedError(
            "`position_ids` start a new document after a filled cache; pack documents in one forward without a cache."
        )


def refuse_other_past(num_past: int, num_given: int, num_known: int) -> None:
    """Refuse a cache that does not hold the tokens before the new ones, of those that `generate` is given.

    Args:
        num_past: the tokens in the cache.
        num_given: the tokens of the prompt: all of the conversation, or only those that are new.
        num_known: the tokens of the conversation, as the mask has them.
    """
    if num_given == num_known and num_past >= num_given:
        raise ValueError(
            f"`past_key_values` holds {num_past} tokens, the prompt {num_given}: give the whole conversation, which "
            "the cache holds the beginning of, or what is new with an `attention_mask` over the whole."
        )
    if num_given != num_known and num_past + num_given != num_known:
        raise ValueError(
            f"`past_key_values` holds {num_past} tokens, and {num_given} are new, which the `attention_mask` must "
            f"cover together, got one over {num_known}."
        )


def refuse_foreign(past_key_values: Cache) -> None:
    """Refuse a cache that has no place for a PLT's state."""
    if isinstance(past_key_values, PagedAttentionCache):
        raise NotImplementedError(
            "Continuous batching is not supported: its paged cache has no place for the carry and the windows of "
            "later loops. Use `generate()`."
        )
    if not isinstance(past_key_values, PLTCacheMixin):
        raise TypeError(
            f"`past_key_values` must be a `PLTCache` or a `PLTStaticCache`, got `{type(past_key_values).__name__}`, "
            "which has no place for the carry and the windows of later loops. (Prefix tuning passes such a cache: not "
            "supported.)"
        )


def refuse_other_states(hidden_states: Tensor | Any) -> None:
    """Refuse the output of a replaced layer that is no tensor: adapters of PEFT may send states of their own."""
    if not isinstance(hidden_states, Tensor):
        raise NotImplementedError(
            f"A layer must return a tensor of hidden states, got `{type(hidden_states).__name__}`: adapters that send "
            "their own states from layer to layer (PEFT's Shadow) are not supported."
        )


def refuse_states_after_others(config: PLTConfig, past_key_values: PLTCacheMixin | None) -> None:
    """Refuse to read earlier loops out through a coda whose cache holds what the last loop has left in it."""
    if not config.has_coda or len(config.looped_stage.loops) == 1 or past_key_values is None:
        return
    if past_key_values.is_compileable or past_key_values.get_seq_length() > 0:
        raise NotImplementedError(
            "`output_loop_hidden_states=True` with a coda must read all tokens in one forward, without a static "
            "cache: earlier loops are read out through the coda, which keeps the last loop's keys only."
        )


def refuse_lookup_after(past_key_values: PLTCacheMixin, generation_mode: GenerationMode) -> None:
    """Refuse drafts after a filled cache: transformers would feed the whole prompt into it again."""
    if generation_mode == GenerationMode.ASSISTED_GENERATION and past_key_values.get_seq_length() > 0:
        raise NotImplementedError(
            "Prompt lookup and assisted decoding cannot continue from a filled `past_key_values`: transformers would "
            "feed the whole prompt into it again. Leave out the cache, or the lookup."
        )


def refuse_early_exit(config: PLTConfig, last_layer: int | None) -> None:
    """Refuse drafts of the first layers alone where these are a prelude: without a core and a coda, nothing loops."""
    if last_layer is not None and len(config.stages) > 1:
        raise NotImplementedError(
            f"`assistant_early_exit={last_layer}` needs a model whose layers all loop, got "
            f"`num_prelude_layers={config.num_prelude_layers}` and `num_coda_layers={config.num_coda_layers}`."
        )


def refuse_unusable(past_key_values: PLTCacheMixin, config: PLTConfig, inputs_embeds: Tensor) -> None:
    """Refuse a cache that was made for another model, holds another batch, or can take no more tokens."""
    refuse_foreign(past_key_values)
    past_key_values.refuse_others(inputs_embeds)
    for name, value in shape_of(config).items():
        if value != (made_for := past_key_values.made_for[name]):
            raise ValueError(f"`past_key_values` was made for `{name}={made_for}`, the model has `{name}={value}`.")
    if past_key_values.why_closed is not None:
        raise NotImplementedError(f"`past_key_values` cannot be continued: {past_key_values.why_closed}")
    if past_key_values.is_compileable and config._attn_implementation not in DENSE:
        raise NotImplementedError(
            f"A `PLTStaticCache` needs a mask over its whole memory, which {' and '.join(DENSE)} take, but not "
            f"`{config._attn_implementation}`."
        )


# Adapters of PEFT for which it matters which positions a call holds, where a PLT has loops, pads and pruning. With
# them, loops run in turn and at all positions, so that each call holds the tokens once, as a Llama's does.

COUNTS, AVERAGES, WEIGHS = "aLoRA", "Lily", "X-LoRA"


def position_adapters(module: nn.Module) -> set[str]:
    """The position adapters anywhere in a module, by name.

    PEFT may be absent, so nothing of it is imported. Every step of decoding asks: `modules()` takes three times
    as long.
    """
    found: set[str] = set()
    remaining = [module]
    while remaining:
        module = remaining.pop()
        if "base_layer" in module._modules:
            found |= adapters_of(module)
        remaining += [child for child in module._modules.values() if child is not None]
    return found


def adapters_of(layer: nn.Module) -> set[str]:
    """The position adapters of a layer: aLoRA counts from the end, Lily averages over all, X-LoRA weighs tokens."""
    variants = [type(variant).__name__ for variant in vars(layer).get("lora_variant", {}).values()]
    replaced = getattr(vars(layer).get("forward"), "__self__", None)
    is_there = {
        COUNTS: "ALoraLinearVariant" in variants,
        AVERAGES: "lily_router" in layer._modules,
        WEIGHS: type(replaced).__name__ == "XLoraLinearLayer",
    }
    return {name for name, is_found in is_there.items() if is_found}


def refuse_misplaced(adapters: set[str], pads: Pads | None, is_checkpointing: bool) -> None:
    """Refuse cases that are wrong even if loops run in turn and at all positions."""
    if pads is not None and adapters & {COUNTS, WEIGHS}:
        raise NotImplementedError(
            f"{' and '.join(sorted(adapters & {COUNTS, WEIGHS}))} knows tokens by their place in a row, so pads must "
            "come before the tokens, got an `attention_mask` with pads after or between them: inside the layers of a "
            "PLT they come first."
        )
    if is_checkpointing and COUNTS in adapters:
        raise NotImplementedError(
            "aLoRA cannot be trained with gradient checkpointing: PEFT withdraws the invocation's place after a "
            "layer's first backward, and every loop has one."
        )
