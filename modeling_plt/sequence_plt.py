# SPDX-License-Identifier: Apache-2.0
"""Positions of the new tokens, and where their sequences start: the shift stays inside a sequence.

B batch, T new tokens, S cached + new.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .blocks_plt import NO_START
from .cache_plt import PLTCacheMixin
from .configuration_plt import PLTConfig
from .masks_plt import make_full_mask, make_window_mask
from .pads_plt import NO_POSITION, Pads, join
from .refusals_plt import (
    can_read,
    refuse_documents_after_others,
    refuse_other_pads,
    refuse_other_start,
    refuse_overflow,
    refuse_wrong_shapes,
)


class NewTokens(NamedTuple):
    """The facts that a forward needs of its T new tokens; everywhere in it, the pads of a batch entry come first."""

    positions: Tensor  # [B, T], NO_POSITION for pads
    follows: Tensor  # [B, T], whether a token continues the one before it, and so takes its state
    pads: Pads | None  # where the pads are among the new tokens, if that matters
    num_pads: Tensor | None  # [B, 1], all pads of an entry, cached ones too; None without a mask
    are_packed: bool  # whether an entry holds several documents
    full_mask: Any = None  # over all keys, as the attention implementation takes it
    window_mask: Any = None  # over a later loop's own keys

    @property
    def num_tokens(self) -> int:
        return self.positions.shape[1]

    @property
    def position_ids(self) -> Tensor:
        """Positions `[B, T]` as a table of them has them: 0 for pads."""
        return self.positions.clamp(min=0)

    def contiguous(self) -> "NewTokens":
        """The same object: there is nothing to copy."""
        return self  # UNTIL transformers 5.24: older ones ask this of what `create_masks_for_generate` returns


def read_tokens(
    config: PLTConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    past_key_values: PLTCacheMixin | None,
) -> NewTokens:
    """Read padding, documents and the tokens before, once per forward.

    Args:
        inputs_embeds: `[B, T, any]`, of which only shape, dtype and device are read.
        attention_mask: `[B, S]`, 0 for pads.
        position_ids: `[B or 1, T]`.
        past_key_values: the cache, before the tokens are added.

    Raises:
        ValueError: the shapes do not fit together, the mask marks other pads than those in the cache, or positions
            do not continue those in it.
        NotImplementedError: packed documents after a filled cache.
    """
    num_past = 0 if past_key_values is None else past_key_values.get_seq_length()
    num_tokens = inputs_embeds.shape[1]
    refuse_wrong_shapes(inputs_embeds, attention_mask, position_ids, num_past)
    refuse_overflow(past_key_values, num_past, num_tokens)
    if attention_mask is not None:
        attention_mask = attention_mask.to(inputs_embeds.device) != 0
    refuse_other_pads(past_key_values, attention_mask, num_past, num_tokens)

    pads = find_pads(attention_mask, num_tokens)
    num_pads = None if attention_mask is None else (~attention_mask).long().sum(dim=1, keepdim=True)
    columns = num_past + torch.arange(num_tokens, device=inputs_embeds.device)
    positions = read_positions(position_ids, columns, pads, num_pads).expand(inputs_embeds.shape[0], -1)
    ends = last_positions(past_key_values, positions)
    previous = join(ends, positions, pads, dim=1)[:, :-1]
    follows = positions == previous + 1
    are_compared = is_first_step(past_key_values) or can_read(positions, num_tokens)
    are_packed = are_compared and hold_several_documents(positions, previous, follows, attention_mask is not None)
    if are_packed:
        refuse_other_start(ends, positions, num_past, are_counted=position_ids is None)
        refuse_documents_after_others(num_past)
    tokens = NewTokens(positions, follows, pads, num_pads, are_packed)
    num_columns = None if attention_mask is None else attention_mask.shape[1]
    return add_masks(tokens, config, inputs_embeds, past_key_values, columns, num_columns)


def add_masks(
    tokens: NewTokens,
    config: PLTConfig,
    inputs_embeds: Tensor,
    past_key_values: PLTCacheMixin | None,
    columns: Tensor,
    num_columns: int | Any,
) -> NewTokens:
    """The tokens at `columns` `[T]` of S (None: there is no mask) with the masks that their attention needs."""
    num_past, is_static = 0, False
    if past_key_values is not None:
        num_past, is_static = past_key_values.get_seq_length(), past_key_values.is_compileable
    # without a mask and a cache, transformers builds the masks of documents from their positions
    num_pads: Any = tokens.num_pads
    has_mask = num_pads is not None and not tokens.are_packed
    if tokens.num_tokens == 1 and not has_mask and not is_static:
        return tokens  # the last position sees everything that the cache holds
    if not is_static and num_past == 0:
        past_key_values = None  # an empty cache adds nothing to a mask
    inputs: dict[str, Any] = {
        "config": config,
        "inputs_embeds": inputs_embeds,
        "attention_mask": torch.arange(num_columns, device=columns.device) >= num_pads if has_mask else None,
        "position_ids": tokens.positions,
    }
    full_mask, window_mask = make_full_mask(past_key_values, **inputs), None
    if config.has_gate:
        window_mask = make_window_mask(past_key_values, sequence_starts(tokens, columns), num_past, **inputs)
    return tokens._replace(full_mask=full_mask, window_mask=window_mask)


def find_pads(attention_mask: Tensor | None, num_tokens: int) -> Pads | None:
    """The places of pads among the new tokens, by a mask `[B, S]`; None if all are before the real tokens anyway."""
    if attention_mask is None:
        return None
    is_real = attention_mask[:, -num_tokens:]
    if not torch.compiler.is_compiling():
        if is_real.all():  # as in every step of decoding
            return None
        comes_late = ~is_real & (attention_mask.long().cumsum(dim=1)[:, -num_tokens:] > 0)
        return Pads.of(is_real) if comes_late.any() else None
    if num_tokens > 1:  # compiled code cannot read values
        return Pads.of(is_real)
    torch._assert_async(is_real.all(), "A single token in compiled code must not be a pad.")
    return None


def read_positions(position_ids: Tensor | None, columns: Tensor, pads: Pads | None, num_pads: Tensor | None) -> Tensor:
    """Positions `[B or 1, T]`, pads first and at NO_POSITION; if none are given, the real tokens so far are counted.

    Args:
        columns: `[T]`, counting everything that the cache has seen.
        num_pads: `[B, 1]`, among all of them.
    """
    positions = columns.unsqueeze(0) if position_ids is None else position_ids
    if position_ids is None and num_pads is not None:
        positions = positions - num_pads
    if position_ids is not None and pads is not None:
        positions = pads.put_first(position_ids.expand(pads.order.shape[0], -1))
    is_pad = positions < 0
    if num_pads is not None:
        is_pad = is_pad | (columns < num_pads if pads is None else columns < columns[:1] + pads.count)
    return positions.masked_fill(is_pad, NO_POSITION)


def last_positions(past_key_values: PLTCacheMixin | None, positions: Tensor) -> Tensor:
    """The position `[B, 1]` of the last token in a cache; NO_POSITION if there is none."""
    if past_key_values is not None and past_key_values.carry.positions is not None:
        return past_key_values.carry.positions[:, -1:]
    return torch.full_like(positions[:, :1], NO_POSITION)


def is_first_step(past_key_values: PLTCacheMixin | None) -> bool:
    """Whether a caller that believes to know what the cache holds goes on from it; asked once."""
    if torch.compiler.is_compiling() or past_key_values is None or not past_key_values.is_handed_over:
        return False
    past_key_values.is_handed_over = False
    return True


def hold_several_documents(positions: Tensor, previous: Tensor, follows: Tensor, has_mask: bool) -> bool:
    """Whether a token of `[B, T]` does not continue the one before it, other than at pads that a mask hides."""
    breaks = ~follows
    breaks[:, :1] &= previous[:, :1] != NO_POSITION  # the first token of all continues none
    if has_mask:
        breaks &= (positions != NO_POSITION) & (previous != NO_POSITION)
    return bool(breaks.any())


def sequence_starts(tokens: NewTokens, columns: Tensor) -> Tensor:
    """The column `[B, T]` where each token's sequence starts: the token itself, unless it follows another.

    Columns count everything that the cache has seen, pads too, which come first.
    """
    first = 0 if tokens.num_pads is None else tokens.num_pads.minimum(columns)
    continues = tokens.follows | (tokens.positions == NO_POSITION)
    starts = torch.where(continues, first, columns)
    if torch.compiler.is_exporting():  # ONNX has no cumulative maximum
        is_before = columns[None, :] <= columns[:, None]
        return torch.where(is_before, starts.unsqueeze(1), NO_START).amax(dim=2)
    return starts.cummax(dim=1).values
