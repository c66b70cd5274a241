# SPDX-License-Identifier: Apache-2.0
"""The PLT cache: what a sequence leaves behind for its next token (spec: shared KV, windows, carry).

B batch, L loops, T new tokens, S cached + new, W sliding window, Hkv KV heads, Dh head_dim, D hidden.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


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

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append `[B, Hkv, T, Dh]` and return the columns that the T new queries may see, at most W - 1 + T."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys = torch.cat((self.keys, key_states), dim=-2)
        values = torch.cat((self.values, value_states), dim=-2)
        self.cumulative_length += key_states.shape[-2]
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

    def activate_past_recording(self) -> None:
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last `-tokens_to_remove` tokens (a number <= 0) and everything the window no longer needs."""
        if not self.is_initialized:
            return
        num_left = self.keys.shape[-2] + tokens_to_remove
        if num_left < min(self.num_kept, self.cumulative_length + tokens_to_remove):
            raise RuntimeError(
                f"Cannot take back {-tokens_to_remove} tokens: the cache no longer holds the states before them. "
                "Call `activate_past_recording()` before the tokens that may have to be taken back."
            )
        self.keys = self.trim(self.keys[..., :num_left, :])
        self.values = self.trim(self.values[..., :num_left, :])
        self.cumulative_length += tokens_to_remove


class Carry(WindowLayer):
    """Every loop's state at the last position but the last loop's, which feeds the next loop at the next position.

    To be cropped, reordered and reset like a window, it is one: of two columns, whose `keys` `[B, L - 1, 1, D]` are
    the states and whose `values` `[B, 1, 1, 1]` are the positions they belong to.
    """

    def __init__(self):
        super().__init__(sliding_window=2)

    def read(self) -> tuple[Tensor, Tensor] | None:
        """States `[B, L - 1, D]` and positions `[B, 1]` of the last token, or None before the first one."""
        if not self.is_initialized or self.keys.shape[-2] == 0:
            return None
        return self.keys[:, :, -1], self.values[:, 0, -1]

    def write(self, states: list[Tensor], position_ids: Tensor) -> None:
        """Replace the carry by the last of T tokens: L - 1 states `[B, T, D]` at positions `[B, T]`."""
        num_tokens = position_ids.shape[1]
        num_columns = num_tokens if self.record_past else 1
        columns = torch.stack([state[:, -num_columns:] for state in states], dim=1)
        self.update(columns, position_ids[:, None, -num_columns:, None])
        self.cumulative_length += num_tokens - num_columns


class PLTCache(DynamicCache):
    """Cache of a PLT whose memory grows with the sequence in loop 0 only (paper section 3.2).

    - the layers of the cache itself hold loop 0: the shared KV `[B, Hkv, S, Dh]`, one per decoder layer;
    - `later_loops` holds one cache per later loop: windows for `loop_attention="gated_window"`, full keys and values
      for `"own"`, nothing for `"shared"`;
    - `carry` holds the states `[B, L - 1, D]` that the next token's loops start from; None without `loop_shift`.

    A sequence of S >= W tokens takes `2 * N * Hkv * Dh * (S + (L - 1) * (W - 1)) + (L - 1) * D` elements and one
    position id. Beam search, batch selection and rollback act on all three parts.

    Args:
        config: the `PLTConfig` of the model that will fill the cache.
    """

    # taking tokens back needs `activate_past_recording` first, so it is not always possible
    is_croppable = False

    def __init__(self, config):
        super().__init__(config=config)
        num_layers, num_later = config.num_hidden_layers, config.num_loops - 1
        self.num_loops = config.num_loops
        self.later_loops: list[Cache] = []
        if config.loop_attention == "gated_window":
            self.later_loops = [
                Cache([WindowLayer(config.sliding_window) for _ in range(num_layers)]) for _ in range(num_later)
            ]
        elif config.loop_attention == "own":
            self.later_loops = [Cache([DynamicLayer() for _ in range(num_layers)]) for _ in range(num_later)]
        self.carry = Carry() if config.loop_shift and num_later > 0 else None
        self.holds_packed_documents = False

    @property
    def nbytes(self) -> int:
        """Bytes of all the states held."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.all_layers if layer.is_initialized)

    @property
    def all_layers(self) -> list[DynamicLayer]:
        """Everything that holds states: loop 0, the later loops, the carry."""
        layers = [layer for cache in (self, *self.later_loops) for layer in cache.layers]
        return layers if self.carry is None else [*layers, self.carry]

    @property
    def parts(self) -> list[Cache | Carry]:
        """Everything but loop 0, in the order in which a refusal to crop leaves the whole cache untouched."""
        return self.later_loops if self.carry is None else [self.carry, *self.later_loops]

    def update_own(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, loops: range
    ) -> tuple[Tensor, Tensor]:
        """Append the own keys and values of several loops and return what those loops see of their own.

        Args:
            key_states, value_states: `[B, len(loops) * Hkv, T, Dh]`, loop by loop.
            layer_idx: the decoder layer.
            loops: the loops they belong to.

        Returns:
            Keys and values `[B, len(loops) * Hkv, n, Dh]`.
        """
        caches = [self, *self.later_loops][loops.start : loops.stop]
        if len(caches) == 1:
            return caches[0].update(key_states, value_states, layer_idx)
        new = zip(key_states.chunk(len(loops), dim=1), value_states.chunk(len(loops), dim=1), strict=True)
        seen = [cache.update(key, value, layer_idx) for cache, (key, value) in zip(caches, new, strict=True)]
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
        for part in self.parts:
            part.crop(tokens_to_remove)
        super().crop(tokens_to_remove)

    def activate_past_recording(self) -> None:
        for part in self.parts:
            part.activate_past_recording()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        for part in self.parts:
            part.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        for part in self.parts:
            part.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        for part in self.parts:
            part.batch_select_indices(indices)

    def reset(self) -> None:
        for layer in self.all_layers:
            layer.reset()
            # older releases of transformers zero a dynamic layer and keep its length
            layer.keys = layer.values = None
            layer.is_initialized = False
        self.holds_packed_documents = False
