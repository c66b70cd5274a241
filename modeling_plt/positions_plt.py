# SPDX-License-Identifier: Apache-2.0
"""Positions: which token a token follows, and so where a sequence starts (spec: the shift is per sequence).

B batch, T new tokens.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache

NO_POSITION = -2  # of a pad, or of what precedes a sequence: no token's position is one more


def count_positions(
    attention_mask: Tensor | None, num_past: int | Tensor, num_tokens: int, device: torch.device
) -> Tensor:
    """Positions `[B or 1, T]` when none are given: real tokens so far, or all tokens so far without a mask."""
    if attention_mask is None:
        return (num_past + torch.arange(num_tokens, device=device)).unsqueeze(0)
    return (attention_mask.to(device).long().cumsum(dim=-1) - 1).clamp(min=0)[:, -num_tokens:]


def mark_pads(position_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Positions `[B, T]` with NO_POSITION for pads: 0 in the mask `[B, S]`, or at a negative position."""
    is_real = position_ids >= 0
    if attention_mask is not None:
        is_real = is_real & attention_mask[:, -position_ids.shape[1] :].to(position_ids.device)
    return torch.where(is_real, position_ids, NO_POSITION)


def last_positions(past_key_values: Cache | None, batch_size: int, device: torch.device) -> Tensor:
    """The position `[B, 1]` of the last token in a `PLTCache`; NO_POSITION if there is none."""
    if past_key_values is not None and past_key_values.carry.positions is not None:
        return past_key_values.carry.positions[:, -1:]
    return torch.full((batch_size, 1), NO_POSITION, device=device)


def previous_positions(token_positions: Tensor, last_position: Tensor) -> Tensor:
    """The position of the token before each of `[B, T]`, in the tensor or at `last_position` `[B, 1]`."""
    return torch.cat((last_position, token_positions[:, :-1]), dim=1)


def follows_previous(token_positions: Tensor, last_position: Tensor) -> Tensor:
    """Whether each token `[B, T]` continues the token before it, in the tensor or at `last_position` `[B, 1]`."""
    return token_positions == previous_positions(token_positions, last_position) + 1


# The following read values, and so wait for the device: only forwards of several tokens call them.


def holds_several_documents(token_positions: Tensor, last_position: Tensor, has_mask: bool) -> bool:
    """Whether a token of `[B, T]` does not continue the one before it, other than at pads that a mask hides."""
    breaks = ~follows_previous(token_positions, last_position)
    breaks[:, :1] &= last_position != NO_POSITION  # the first token of all continues none
    if has_mask:
        previous = previous_positions(token_positions, last_position)
        breaks &= (token_positions != NO_POSITION) & (previous != NO_POSITION)
    return bool(breaks.any())


def has_gaps(attention_mask: Tensor) -> bool:
    """Whether a row of `[B, S]` has real tokens on both sides of a pad."""
    starts = attention_mask[:, 1:] & ~attention_mask[:, :-1]
    return bool((starts.sum(dim=1) + attention_mask[:, 0] > 1).any())


def ends_in_pads(attention_mask: Tensor) -> bool:
    """Whether a row of `[B, S]` has real tokens, but not as its last."""
    return bool((attention_mask.any(dim=1) & ~attention_mask[:, -1]).any())
