# SPDX-License-Identifier: Apache-2.0
"""Positions: which token a token follows, and so where a sequence starts (spec: the shift is per sequence).

B batch, T new tokens.
"""

import torch
from torch import Tensor

NO_POSITION = -2  # of a pad, or of what precedes a sequence: no token's position is one more


def count_positions(attention_mask: Tensor | None, num_past: int, num_tokens: int, device: torch.device) -> Tensor:
    """Positions `[B or 1, T]` when none are given: real tokens so far, or all tokens so far without a mask."""
    if attention_mask is None:
        return torch.arange(num_past, num_past + num_tokens, device=device).unsqueeze(0)
    return (attention_mask.to(device).long().cumsum(dim=-1) - 1).clamp(min=0)[:, -num_tokens:]


def mark_pads(position_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Positions `[B, T]` with NO_POSITION for pads: 0 in the mask `[B, S]`, or at a negative position."""
    is_real = position_ids >= 0
    if attention_mask is not None:
        is_real = is_real & attention_mask[:, -position_ids.shape[1] :].to(position_ids.device, torch.bool)
    return torch.where(is_real, position_ids, NO_POSITION)


def follows_previous(token_positions: Tensor, last_position: Tensor | None) -> Tensor:
    """Whether each token `[B, T]` continues the token before it, in the tensor or at `last_position` `[B, 1]`."""
    if last_position is None:
        last_position = torch.full_like(token_positions[:, :1], NO_POSITION)
    return token_positions == torch.cat((last_position, token_positions[:, :-1]), dim=1) + 1


def holds_several_documents(token_positions: Tensor, attention_mask: Tensor | None) -> bool:
    """Whether positions restart within a row of `[B, T]`, other than at pads that a mask hides.

    Reads the values, so it waits for the device.
    """
    if token_positions.shape[1] == 1:
        return False
    restarts = token_positions.diff(dim=1) != 1
    if attention_mask is not None:
        is_pad = token_positions == NO_POSITION
        restarts &= ~(is_pad[:, 1:] | is_pad[:, :-1])
    return bool(restarts.any())
