# SPDX-License-Identifier: Apache-2.0
"""The PLT cache at fixed addresses, with its lengths in tensors, for compiled decoding.

B batch, L loops, T new tokens, R loops in a call, W sliding window, Hkv KV heads, Dh head_dim, D hidden.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache, StaticLayer

from .cache_plt import Carry, PLTCacheMixin, refuse_layer_by_layer
from .configuration_plt import PLTConfig
from .pads_plt import NO_POSITION, Pads, join, tail


class StaticLoops(StaticLayer):
    """The own keys and values of several loops in one decoder layer, `[B, loops * Hkv, max_cache_len, Dh]`.

    Loops are heads, so that all loops of a token are written and read at once. The last loop to be updated completes
    the tokens: it advances `cumulative_length`.
    """

    keys: Tensor | Any  # None before the first token, when nothing reads it
    values: Tensor | Any

    def __init__(self, max_cache_len: int, loops: range):
        super().__init__(max_cache_len=max_cache_len)
        self.loops = loops

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for all loops; the given `[B, Hkv, T, Dh]` are those of one."""
        keys = key_states.repeat(1, len(self.loops), 1, 1)
        super().lazy_initialization(keys, value_states.repeat(1, len(self.loops), 1, 1))

    def update_loops(
        self, key_states: Tensor, value_states: Tensor, loops: range, num_tokens: int, pads: Pads | None
    ) -> tuple[Tensor, Tensor]:
        """Append the last of T tokens `[B, R, Hkv, <= T, Dh]` of R loops, and return what they see of their own."""
        if not self.is_initialized:
            self.lazy_initialization(key_states[:, 0], value_states[:, 0])
        columns = self.cumulative_length + torch.arange(num_tokens, device=key_states.device)
        seen: Any = self.write(self.keys, key_states, loops, columns, pads)
        seen = seen, self.write(self.values, value_states, loops, columns, pads)
        # until the last loop has written, all loops write at the same columns
        if loops.stop == self.loops.stop:
            self.cumulative_length.add_(num_tokens)
        return seen

    def write(self, stored: Tensor, new: Tensor, loops: range, columns: Tensor, pads: Pads | None) -> Tensor:
        """Put tokens `[B, R, Hkv, <= T, Dh]` at the columns `[T]` of their loops."""
        num_loops, num_heads = new.shape[1:3]
        heads = slice((loops.start - self.loops.start) * num_heads, (loops.stop - self.loops.start) * num_heads)
        new = new.flatten(1, 2).to(stored.dtype)  # memory that was taken early has the weights' dtype, not autocast's
        return self.write_heads(stored[:, heads], new, columns, pads).unflatten(1, (num_loops, -1))

    def write_heads(self, stored: Tensor, new: Tensor, columns: Tensor, pads: Pads | None) -> Tensor:
        """Put `[B, heads, T, Dh]` at its columns `[T]`; returns all that is stored."""
        stored.index_copy_(2, columns, new)
        if pads is not None:
            stored.copy_(pads.move(stored, columns[:1], columns.shape[0], dim=2))
        return stored


class RingLayer(StaticLoops):
    """The windows of the later loops in one decoder layer: column c is at c modulo the ring's size.

    `[B, (L - 1) * Hkv, n, Dh]`, where n is W, or all that the cache can hold if that is less.
    """

    is_sliding = True

    def write_heads(self, stored: Tensor, new: Tensor, columns: Tensor, pads: Pads | None) -> Tensor:
        """See `write_ring`."""
        return write_ring(stored, new, columns, pads)


def write_ring(ring: Tensor, new: Tensor, columns: Tensor, pads: Pads | None) -> Tensor:
    """Put the last of the T tokens at `columns` `[T]` into a ring, where column c is at c modulo its size n.

    `new` `[B, heads, <= T, Dh]`: a pruned prefill gives only the last tokens, whose windows reach no further back.
    Returns the columns that their queries see: the ring itself for a single token, else the n - 1 columns before the
    tokens and theirs, in order.
    """
    size = ring.shape[2]
    seen = ring
    if columns.shape[0] > 1 or pads is not None:
        before = (columns[:1] - torch.arange(size - 1, 0, -1, device=columns.device)) % size
        seen = join(ring.index_select(2, before), new, pads, dim=2)
        new = new if pads is None else seen  # a window may lie before the pads among the tokens
    num_kept = min(size, new.shape[2])
    last = columns[-1:] - torch.arange(num_kept - 1, -1, -1, device=columns.device)
    ring.index_copy_(2, last % size, tail(new, num_kept, dim=2))
    return ring if columns.shape[0] == 1 else seen


class StaticCarry(Carry):
    """A carry of one column that is written in place."""

    positions: Tensor | Any  # None before the first token, both of them
    num_pads: Tensor | Any

    def lazy_initialization(self, states: list[Tensor], positions: Tensor) -> None:
        """Allocate for states like `[B, any, D]` and positions like `[B, any]`."""
        self.states = [state.new_zeros(state.shape[0], 1, state.shape[2]) for state in states]
        self.positions = positions.new_full((positions.shape[0], 1), NO_POSITION)  # which no token follows
        self.num_pads = torch.zeros_like(self.positions)
        if not torch.compiler.is_compiling():
            for part in (*self.states, self.positions, self.num_pads):
                torch._dynamo.mark_static_address(part)

    def write(self, states: list[Tensor], positions: Tensor, pads: Pads | None, num_pads: Tensor | None) -> None:
        """As `Carry.write`."""
        if self.positions is None:
            self.lazy_initialization(states, positions)
        for own, state in zip([*self.states, self.positions], [*states, positions], strict=True):
            own.copy_((state if pads is None else join(own, state, pads, dim=1))[:, -1:])
        if num_pads is not None:
            self.num_pads.copy_(num_pads)


class PLTStaticCache(PLTCacheMixin, StaticCache):
    """A `PLTCache` of fixed size, for `generate(cache_implementation="static")` and compiled decode steps.

    - the layers of the cache itself hold loop 0's shared KV `[B, Hkv, max_cache_len, Dh]`, or with
      `loop_attention="own"` the full keys and values of all loops, as further heads;
    - `later_loops` holds their windows, one ring per layer of the looped stage;
    - `carry` as in `PLTCache`.

    Nothing is ever reallocated and no length is a Python number, so a compiled step is traced once. Memory is taken
    for the batch of the first forward. The batch can be reordered (beam search), tokens cannot be taken back.

    Args:
        config: the `PLTConfig` of the model that will fill the cache.
        max_cache_len: how many tokens it can hold, prompt included.

    Raises:
        ValueError: `max_cache_len` is not a number above 0.

    Example:
        >>> cache = PLTStaticCache(model.config, max_cache_len=16)
        >>> prompt = model(input_ids[:, :-1], past_key_values=cache)
        >>> step = model(input_ids[:, -1:], past_key_values=cache)  # the addresses are those of the first call
        >>> print(int(cache.get_seq_length()), cache.get_max_length())
        8 16
    """

    is_croppable = False
    carry: StaticCarry

    def __init__(self, config: PLTConfig, max_cache_len: int):
        if max_cache_len < 1:
            raise ValueError(f"`max_cache_len` must be at least 1, got {max_cache_len}.")
        super().__init__(config=config, max_cache_len=max_cache_len)
        full = [stage.full_loops(stage.loops) for stage in config.stages for _ in stage.layers]
        self.layers = [StaticLoops(max_cache_len, loops) for loops in full]
        self.stage = stage = config.looped_stage
        self.ring_size = min(config.sliding_window, max_cache_len)
        windowed = stage.windowed_loops(stage.loops)
        self.later_loops = [RingLayer(self.ring_size, windowed) for _ in stage.layers] if windowed else []
        self.carry = StaticCarry()
        self.carried = len(stage.loops), config.hidden_size
        self.note_config(config)

    @property
    def all_layers(self) -> list[Any]:
        """Everything that holds keys and values."""
        return [*self.layers, *self.later_loops]

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        loops: range | Any = None,  # `Any` for None, which is refused
        num_tokens: int | Any = None,
        pads: Pads | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `PLTCache.update`."""
        refuse_layer_by_layer(loops, num_tokens)
        layer = self.layers[layer_idx]
        if self.later_loops and loops.start > 0:
            layer = self.later_loops[layer_idx - self.stage.layers.start]
        return layer.update_loops(key_states, value_states, loops, num_tokens, pads)

    def early_initialization(
        self, batch_size: int, num_heads: int | Any, head_dim: int | Any, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Allocate everything for a batch, before the first forward, so that that may be compiled too."""
        empty = torch.zeros(batch_size, num_heads, 0, head_dim, dtype=dtype, device=device)
        for layer in self.all_layers:
            layer.lazy_initialization(empty, empty)
        num_states, hidden_size = self.carried
        state = torch.zeros(batch_size, 1, hidden_size, dtype=dtype, device=device)
        self.carry.lazy_initialization([state] * num_states, state[..., 0].long())
        self.dtype = dtype

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace the batch by these entries of it, in place."""
        parts = [part for layer in self.all_layers for part in (layer.keys, layer.values)]
        for part in (*parts, *self.carry.states, self.carry.positions, self.carry.num_pads):
            part.copy_(part.index_select(0, beam_idx.to(part.device)))

    def reset(self) -> None:
        """Forget the tokens; the memory stays where it is, for a batch of the same size and dtype."""
        for layer in self.all_layers:
            layer.cumulative_length.zero_()
        if self.carry.positions is not None:
            self.carry.positions.fill_(NO_POSITION)
            self.carry.num_pads.zero_()
        self.why_closed = None

    def activate_past_recording(self) -> None:
        raise NotImplementedError(
            "A `PLTStaticCache` cannot take tokens back, which assisted decoding and prompt lookup do. Use `PLTCache`."
        )

    def crop(self, tokens_to_remove: int) -> None:
        """Refused, see `activate_past_recording`."""
        self.activate_past_recording()

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise NotImplementedError("The batch of a `PLTStaticCache` is fixed; use a `PLTCache`.")

    def batch_select_indices(self, indices: Tensor) -> None:
        raise NotImplementedError("The batch of a `PLTStaticCache` is fixed; use a `PLTCache`.")
