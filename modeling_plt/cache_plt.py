# SPDX-License-Identifier: Apache-2.0
"""The PLT cache: what a sequence leaves behind for its next token (spec: shared KV, windows, carry).

B batch, L loops, T new tokens, S cached + new, W sliding window, Hkv KV heads, Dh head_dim, D hidden.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

# what a cache is built from; a model with other values cannot read it
SHAPING_FIELDS = ("num_loops", "loop_shift", "loop_attention", "sliding_window", "num_hidden_layers")

HALF_WAY = "a forward into it ended in an exception, and some layers may hold more tokens than others. `reset()` it."
NOT_RECORDED = (
    "Cannot take back {} tokens: the cache no longer holds the states before them. Call `activate_past_recording()` "
    "before the tokens that may have to be taken back."
)


def last_columns(states: Tensor, num_columns: int) -> Tensor:
    """The last `num_columns` entries of dimension -2, or all if there are fewer; `num_columns` may be 0."""
    return states[..., max(states.shape[-2] - num_columns, 0) :, :]


class WindowLayer(DynamicLayer):
    """The last `sliding_window - 1` keys and values `[B, Hkv, <= W - 1, Dh]` of one later loop in one decoder layer.

    While recording, every column since the last `crop` is kept as well, so that rejected drafts can be taken back.
    """

    is_sliding = True

    def __init__(self, sliding_window: int):
        super().__init__()
        self.num_kept = sliding_window - 1  # the current token brings the last key itself
        self.cumulative_length = 0
        self.record_past = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, num_tokens: int | None = None) -> tuple[Tensor, Tensor]:
        """Append `[B, Hkv, T, Dh]` and return the columns that the T new queries may see, at most W - 1 + T.

        With `num_tokens` above T, only the last T of so many tokens are given, and their windows lie among them.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys = torch.cat((self.keys, key_states), dim=-2)
        values = torch.cat((self.values, value_states), dim=-2)
        self.cumulative_length += num_tokens or key_states.shape[-2]
        num_visible = self.num_kept + key_states.shape[-2]
        visible = last_columns(keys, num_visible), last_columns(values, num_visible)
        self.keys, self.values = (keys, values) if self.record_past else (self.trim(keys), self.trim(values))
        return visible

    def trim(self, states: Tensor) -> Tensor:
        kept = last_columns(states, self.num_kept)
        # a view of one spare column is cheap, a view of a whole prompt would keep the prompt in memory
        return kept if states.shape[-2] <= self.num_kept + 1 else kept.clone()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        num_past = min(self.cumulative_length, self.num_kept)
        return num_past + query_length, self.cumulative_length - num_past

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def get_max_length(self) -> int:
        return self.num_kept + 1

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last `-tokens_to_remove` tokens (a number <= 0) and everything the window no longer needs."""
        if not self.is_initialized:
            return
        num_left = self.keys.shape[-2] + tokens_to_remove
        if num_left < min(self.num_kept, self.cumulative_length + tokens_to_remove):
            raise RuntimeError(NOT_RECORDED.format(-tokens_to_remove))
        self.keys = self.trim(self.keys[..., :num_left, :])
        self.values = self.trim(self.values[..., :num_left, :])
        self.cumulative_length += tokens_to_remove


class Carry:
    """Every loop's state but the last loop's at the last token, which feeds the next loop at the next token.

    `states` are one `[B, C, D]` per loop that hands its state on, none without `loop_shift`; `positions` `[B, C]` are
    those of the tokens they belong to. Only the last of the C columns is read: C is 1, or while recording, all since
    the last `crop`.
    """

    def __init__(self):
        self.record_past = False
        self.reset()

    def reset(self) -> None:
        self.states: list[Tensor] = []
        self.positions: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return 0 if self.positions is None else sum(part.nbytes for part in (*self.states, self.positions))

    def write(self, states: list[Tensor], positions: Tensor) -> None:
        """Take over T tokens: states `[B, T, D]` at positions `[B, T]`."""
        num_columns = positions.shape[1] if self.record_past else 1
        states, positions = [state[:, -num_columns:] for state in states], positions[:, -num_columns:]
        # a view of the last column would keep a whole prompt in memory
        states, positions = [state.clone() for state in states], positions.clone()
        if self.record_past and self.positions is not None:
            states = [torch.cat(pair, dim=1) for pair in zip(self.states, states, strict=True)]
            positions = torch.cat((self.positions, positions), dim=1)
        self.states, self.positions = states, positions

    def crop(self, tokens_to_remove: int) -> None:
        """Go back to the token before the last `-tokens_to_remove`, and forget those before it.

        Raises:
            RuntimeError: its states were not recorded.
        """
        if self.positions is None:
            return
        num_left = self.positions.shape[1] + tokens_to_remove
        if num_left < 1:
            raise RuntimeError(NOT_RECORDED.format(-tokens_to_remove))
        last = slice(num_left - 1, num_left)
        self.states = [state[:, last].clone() for state in self.states]
        self.positions = self.positions[:, last].clone()

    def select(self, rows: Tensor) -> None:
        """Replace the batch by these rows of it."""
        if self.positions is not None:
            self.states = [state.index_select(0, rows.to(state.device)) for state in self.states]
            self.positions = self.positions.index_select(0, rows.to(self.positions.device))


class PLTCacheMixin:
    """What a cache for a PLT knows besides its states."""

    def note_config(self, config) -> None:
        """Remember which models can read the cache."""
        self.made_for = {name: getattr(config, name) for name in SHAPING_FIELDS}
        self.why_closed: str | None = None  # why no token can follow, if so
        self.dtype: torch.dtype | None = None  # of the embeddings so far

    @contextmanager
    def extending(self) -> Iterator[None]:
        """The time of a forward: one that ends in an exception leaves some layers with its tokens, some without."""
        if torch.compiler.is_compiling():
            yield
            return
        why_closed, self.why_closed = self.why_closed, HALF_WAY
        yield
        self.why_closed = why_closed

    def refuse_others(self, inputs_embeds: Tensor) -> None:
        """Refuse embeddings `[B, T, D]` of another batch size or dtype than those of the tokens so far.

        Raises:
            ValueError: they are of another.
        """
        rows, dtype = self.carry.positions, inputs_embeds.dtype
        if rows is not None and rows.shape[0] != inputs_embeds.shape[0]:
            raise ValueError(f"`past_key_values` holds {rows.shape[0]} rows, the input has {inputs_embeds.shape[0]}.")
        if self.dtype is not None and self.dtype != dtype:
            raise ValueError(f"`past_key_values` was filled in {self.dtype}, the embeddings are {dtype}.")
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all the states held."""
        layers = [layer for layer in self.all_layers if layer.is_initialized]
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) + self.carry.nbytes


class PLTCache(PLTCacheMixin, DynamicCache):
    """Cache of a PLT whose memory grows with the sequence in loop 0 only (paper section 3.2).

    - the layers of the cache itself hold loop 0: the shared KV `[B, Hkv, S, Dh]`, one per decoder layer;
    - `later_loops` holds one cache per later loop: windows for `loop_attention="gated_window"`, full keys and values
      for `"own"`, nothing for `"shared"`;
    - `carry` holds the states that the next token's loops start from, and the position they belong to.

    A sequence of S >= W tokens takes `2 * N * Hkv * Dh * (S + (L - 1) * (W - 1)) + (L - 1) * D` elements and one
    position id. Beam search, batch selection and rollback act on all three parts.

    Args:
        config: the `PLTConfig` of the model that will fill the cache.
    """

    is_croppable = True  # once recording has been activated, which those who ask do

    def __init__(self, config):
        super().__init__(config=config)
        num_layers, num_later = config.num_hidden_layers, config.num_loops - 1
        self.later_loops: list[Cache] = []
        if config.loop_attention == "gated_window":
            self.later_loops = [
                Cache([WindowLayer(config.sliding_window) for _ in range(num_layers)]) for _ in range(num_later)
            ]
        elif config.loop_attention == "own":
            self.later_loops = [Cache([DynamicLayer() for _ in range(num_layers)]) for _ in range(num_later)]
        self.carry = Carry()
        self.note_config(config)

    @property
    def all_layers(self) -> list[DynamicLayer]:
        """Everything that holds keys and values: loop 0 and the later loops."""
        return [layer for cache in (self, *self.later_loops) for layer in cache.layers]

    def update_own(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, loops: range, num_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Append the own keys and values of several loops and return what those loops see of their own.

        Args:
            key_states, value_states: `[B, len(loops) * Hkv, T, Dh]`, loop by loop.
            layer_idx: the decoder layer.
            loops: the loops they belong to.
            num_tokens: how many tokens are new; windows take the last T of them.

        Returns:
            Keys and values `[B, len(loops) * Hkv, n, Dh]`.
        """
        caches = [self, *self.later_loops][loops.start : loops.stop]
        if len(caches) == 1:
            return caches[0].update(key_states, value_states, layer_idx, num_tokens)
        new = zip(key_states.chunk(len(loops), dim=1), value_states.chunk(len(loops), dim=1), strict=True)
        seen = [
            cache.update(key, value, layer_idx, num_tokens) for cache, (key, value) in zip(caches, new, strict=True)
        ]
        return torch.cat([key for key, _ in seen], dim=1), torch.cat([value for _, value in seen], dim=1)

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` tokens; 0 ends a recording stretch without taking any back.

        Raises:
            ValueError: `tokens_to_remove` is positive, or more tokens than the cache holds.
            RuntimeError: the states before those tokens were not recorded; the cache is left as it was.
        """
        if not -self.get_seq_length() <= tokens_to_remove <= 0:
            raise ValueError(
                f"`tokens_to_remove` must be between -{self.get_seq_length()} (the tokens in the cache) and 0, "
                f"got {tokens_to_remove}."
            )
        if tokens_to_remove == -self.get_seq_length() and self.carry.record_past:
            self.reset()
            return
        # the carry first: its refusal leaves the whole cache untouched
        self.carry.crop(tokens_to_remove)
        for cache in self.later_loops:
            cache.crop(tokens_to_remove)
        super().crop(tokens_to_remove)

    def activate_past_recording(self) -> None:
        """Keep what `crop` needs to take tokens back, until `stop_past_recording`."""
        for part in (self.carry, *self.all_layers):
            part.record_past = True

    def stop_past_recording(self) -> None:
        """Keep no more than the next token needs."""
        for part in (self.carry, *self.all_layers):
            part.record_past = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for layer in self.all_layers:
            layer.reorder_cache(beam_idx)
        self.carry.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch."""
        if self.carry.positions is not None:
            self.reorder_cache(torch.arange(len(self.carry.positions)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor | list[int]) -> None:
        """Replace the batch by these rows of it: a bool mask, or numbers, of which negative ones count from the end.

        Raises:
            IndexError: there is no such row; the cache is left as it was.
        """
        if self.carry.positions is not None:
            self.reorder_cache(torch.arange(len(self.carry.positions))[torch.as_tensor(indices, device="cpu")])

    def reset(self) -> None:
        for layer in self.all_layers:
            layer.reset()
            # older releases of transformers zero a dynamic layer and keep its length
            layer.keys = layer.values = None
            layer.is_initialized = False
        self.carry.reset()
        self.why_closed = self.dtype = None
