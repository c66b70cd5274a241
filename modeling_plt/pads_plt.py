# SPDX-License-Identifier: Apache-2.0
"""Pads: a token follows the last real token before it, wherever pads stand.

Inside a forward, and in the cache, the pads of a batch entry come before its real tokens: there is one layout, that of
padding on the left. Outputs are in the given order again; a pad's output is that of the last real token before it.

B batch, T new tokens, S cached + new.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# marks a pad or "nothing before"; -2, so that no real position equals it plus one
NO_POSITION = -2


class Pads(NamedTuple):
    """The places of the pads among T new tokens."""

    is_real: Tensor  # [B, T], by given columns
    order: Tensor  # [B, T], the new tokens with pads first, by their given columns
    count: Tensor  # type: ignore[assignment]  # [B, 1], how many of the T are pads; hides `tuple.count`

    @classmethod
    def of(cls, is_real: Tensor) -> "Pads":
        """Find the places from a mask of the real tokens, `[B, T]`."""
        is_pad = (~is_real).long()
        count = is_pad.sum(dim=1, keepdim=True)
        place = torch.where(is_real, count + is_real.long().cumsum(dim=1), is_pad.cumsum(dim=1)) - 1
        columns = torch.arange(is_real.shape[1], device=is_real.device).expand_as(place)
        return cls(is_real, torch.zeros_like(place).scatter(1, place, columns), count)

    @property
    def last_real(self) -> Tensor:
        """The last real token up to each given column `[B, T]`, by its column with pads first."""
        return self.count + self.is_real.long().cumsum(dim=1) - 1

    def put_first(self, states: Tensor) -> Tensor:
        """New tokens `[B, T]` or `[B, T, D]` with pads first."""
        return pick(states, self.order, 1)

    def give_back(self, states: Tensor, before: Tensor) -> Tensor:
        """The last n of T tokens `[B, n, D]`, pads first, in the given order.

        A pad gets the state of the last real token before it, which may be the one `[B, 1, D]` before all T.
        """
        num_missing = self.is_real.shape[1] - states.shape[1]
        joined = join(before.to(states.device), states, self, dim=1)
        return pick(joined, tail(self.last_real + 1 - num_missing, states.shape[1]), 1)

    def give_back_weights(self, weights: Tensor) -> Tensor:
        """Attention weights `[B, H, T, n]` in the given order; after a cache, keys stay in its order, pads first."""
        last_real = self.last_real.clamp(min=0)
        weights = pick(weights, last_real, 2)
        if weights.shape[3] > self.is_real.shape[1]:
            return weights
        return pick(weights, last_real, 3) * self.is_real[:, None, None]

    def put_weights_first(self, weights: Tensor) -> Tensor:
        """Attention weights as `give_back_weights` gives them, `[B, H, T, n]`, with pads first again."""
        weights = pick(weights, self.order, 2)
        return weights if weights.shape[3] > self.is_real.shape[1] else pick(weights, self.order, 3)

    def move(self, joined: Tensor, num_past: int | Tensor, num_new: int, dim: int) -> Tensor:
        """Put the pads among the new columns before the past ones.

        Args:
            joined: past columns, then the last of the T new ones, along `dim`.
            num_past, num_new: how many there are of either.
        """
        columns = torch.arange(joined.shape[dim], device=joined.device)
        count = (self.count - (self.order.shape[1] - num_new)).clamp(min=0).to(joined.device)
        sources = torch.where(columns < num_past + count, columns - count, columns).clamp(min=0)
        return pick(joined, sources, dim)


def tail(states: Tensor, num_positions: int, dim: int = 1) -> Tensor:
    """The last positions of `[B, T, ...]`, or where `dim` says that T is.

    All of T is the tensor itself: traced code would not see that in a slice `-T:`.
    """
    start = states.shape[dim] - num_positions
    return states.narrow(dim, start, num_positions) if start else states


def last_columns(states: Tensor, num_columns: int) -> Tensor:
    """The last `num_columns` entries of dimension -2, or all if there are fewer; `num_columns` may be 0."""
    return states[..., max(states.shape[-2] - num_columns, 0) :, :]


def concatenate(parts: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat` without autocast, which refuses float16 next to bfloat16: weights in one, autocast in another."""
    if len(parts) == 1:
        return parts[0]
    device = parts[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return torch.cat(tuple(parts), dim)
    with torch.autocast(device, enabled=False):
        return torch.cat(tuple(parts), dim)


def pick(states: Tensor, columns: Tensor, dim: int) -> Tensor:
    """The columns `[B, n]` along `dim`; `take_along_dim` would tie traced code to one length."""
    shape, index_shape = list(states.shape), [1] * states.dim()
    shape[dim] = index_shape[dim] = columns.shape[1]
    index_shape[0] = columns.shape[0]
    return states.gather(dim, columns.to(states.device).view(index_shape).expand(shape))


def show(states: Tensor, num_queries: int, pads: Pads | None) -> tuple[Tensor, Tensor]:
    """The last Q of states `[B, R * T, D]` in the given order, and the states to go on with.

    The second are read from the first, so that these have a gradient, unless some are missing there: pruned positions,
    or other loops.
    """
    shown = tail(states, num_queries)
    if pads is None:
        return shown, states
    shown = pads.give_back(shown, before=shown[:, :1])
    is_all = states.shape[1] == num_queries == pads.order.shape[1]
    return shown, pads.put_first(shown) if is_all else states


def join(past: Tensor, new: Tensor, pads: Pads | None, dim: int) -> Tensor:
    """Past columns, then new ones; the pads of each entry before both."""
    joined = concatenate((past, new), dim=dim)
    return joined if pads is None else pads.move(joined, past.shape[dim], new.shape[dim], dim)


def take_back(states: Tensor, num_tokens: int, num_pads: Tensor | None, dim: int) -> Tensor:
    """Columns without the last `num_tokens` tokens; `num_pads` `[B, 1]` of these are pads, which come first."""
    num_left = states.shape[dim] - num_tokens
    if num_pads is None:
        return states.narrow(dim, 0, num_left)
    columns = torch.arange(num_left, device=num_pads.device) + num_pads
    return pick(states, columns, dim)
