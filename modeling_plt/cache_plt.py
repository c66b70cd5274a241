# SPDX-License-Identifier: Apache-2.0
"""The PLT cache: the states that a sequence leaves for its next token (paper section 3.2).

B batch, L loops, T new tokens, S cached + new, W sliding window, Hkv KV heads, Dh head_dim, D hidden.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from .configuration_plt import PLTConfig
from .pads_plt import NO_POSITION, Pads, concatenate, join, last_columns, take_back

SHAPING_FIELDS = (
    "num_loops",
    "loop_shift",
    "loop_attention",
    "sliding_window",
    "num_hidden_layers",
    "num_prelude_layers",
    "num_coda_layers",
)

NOT_RECORDED = (
    "Cannot take back {} tokens: the cache no longer holds the states before them. Call `activate_past_recording()` "
    "before the tokens that may have to be taken back."
)
HALF_WAY = "a forward into it ended in an exception, and some layers may hold more tokens than others. `reset()` it."
PACKED = (
    "it holds several documents packed into one batch entry, or pads that came without an `attention_mask`, and new "
    "tokens would attend to all of them."
)


def shape_of(config: PLTConfig) -> dict[str, Any]:
    """The settings that shape a cache, by name; a model with other values cannot read it."""
    return {name: getattr(config, name) for name in SHAPING_FIELDS}


class FullLayer(DynamicLayer):
    """All keys and values `[B, Hkv, S, Dh]` of one loop in one decoder layer, the pads of each entry first."""

    record_past = False  # nothing is dropped, so nothing has to be recorded
    keys: Tensor | Any  # None before the first token, when nothing reads it
    values: Tensor | Any

    def update(
        self, key_states: Tensor, value_states: Tensor, num_tokens: int, pads: Pads | None
    ) -> tuple[Tensor, Tensor]:
        """Append the T tokens `[B, Hkv, T, Dh]` and return everything."""
        num_past = self.get_seq_length()
        super().update(key_states, value_states)
        if pads is not None and num_past > 0:
            self.keys = pads.move(self.keys, num_past, num_tokens, dim=2)
            self.values = pads.move(self.values, num_past, num_tokens, dim=2)
        return self.keys, self.values

    def crop(self, tokens_to_remove: int, num_pads: Tensor | None = None) -> None:
        """Drop the last `-tokens_to_remove` tokens (a number <= 0), of which `num_pads` `[B, 1]` were pads."""
        if self.is_initialized:
            self.keys = take_back(self.keys, -tokens_to_remove, num_pads, dim=2)
            self.values = take_back(self.values, -tokens_to_remove, num_pads, dim=2)


class WindowLayer(DynamicLayer):
    """The last W - 1 keys and values `[B, Hkv, <= W - 1, Dh]` of one later loop in one decoder layer.

    The current token brings the W-th. While recording, every column since the last `crop` is kept as well, so that
    rejected drafts can be taken back.
    """

    is_sliding = True
    keys: Tensor | Any  # None before the first token, when nothing reads it
    values: Tensor | Any

    def __init__(self, sliding_window: int):
        super().__init__()
        self.num_kept = sliding_window - 1
        self.cumulative_length = 0
        self.record_past = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, num_tokens: int, pads: Pads | None
    ) -> tuple[Tensor, Tensor]:
        """Append the last T of `num_tokens` tokens `[B, Hkv, T, Dh]` and return the columns that they may see.

        At most W - 1 + T. In a pruned prefill T is less than `num_tokens`, and no window reaches further back.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys = join(self.keys, key_states, pads, dim=-2)
        values = join(self.values, value_states, pads, dim=-2)
        self.cumulative_length += num_tokens
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

    def crop(self, tokens_to_remove: int, num_pads: Tensor | None = None) -> None:
        """Drop the last `-tokens_to_remove` tokens (a number <= 0) and everything the window no longer needs.

        `num_pads` `[B, 1]` of these tokens were pads.
        """
        if not self.is_initialized:
            return
        num_left = self.keys.shape[-2] + tokens_to_remove
        if num_left < min(self.num_kept, self.cumulative_length + tokens_to_remove):
            raise RuntimeError(NOT_RECORDED.format(-tokens_to_remove))
        self.keys = self.trim(take_back(self.keys, -tokens_to_remove, num_pads, dim=2))
        self.values = self.trim(take_back(self.values, -tokens_to_remove, num_pads, dim=2))
        self.cumulative_length += tokens_to_remove


class Carry:
    """Every loop's state at the last token, which feeds the next loop at the next token.

    `states` are L times `[B, C, D]`, the last of them after the final norm, because a pad after that token returns it.
    `positions` `[B, C]` are those of the tokens that they belong to. Only the last of the C columns is read: C is 1,
    or while recording, all since the last `crop`. `num_pads` `[B, 1]` counts the pads of each entry, None if no mask
    has marked any; `is_real` `[B, C - 1]` tells which of the recorded tokens are.
    """

    def __init__(self) -> None:
        self.record_past = False
        self.reset()

    def reset(self) -> None:
        self.states: list[Tensor] = []
        self.positions: Tensor | None = None
        self.num_pads: Tensor | None = None
        self.is_real: Tensor | None = None

    @property
    def nbytes(self) -> int:
        held = [*self.states, self.positions, self.num_pads, self.is_real]
        return sum(part.nbytes for part in held if part is not None)

    def write(self, states: list[Tensor], positions: Tensor, pads: Pads | None, num_pads: Tensor | None) -> None:
        """Take over T tokens: the last of each loop's states `[B, <= T, D]`, and positions `[B, T]`."""
        if self.record_past:
            # without a mask nothing is moved, whatever its position
            least = NO_POSITION if num_pads is None else 0
            is_real = positions >= least if pads is None else pads.is_real
            self.is_real = is_real if self.is_real is None else torch.cat((self.is_real, is_real), dim=1)
        else:
            self.is_real = None
        if self.positions is not None and (self.record_past or pads is not None):
            states = [join(*pair, pads, dim=1) for pair in zip(self.states, states, strict=True)]
            positions = join(self.positions, positions, pads, dim=1)
        num_columns = positions.shape[1] if self.record_past else 1
        # a view of the last column would keep a whole prompt in memory
        self.states = [state[:, -num_columns:].clone() for state in states]
        self.positions = positions[:, -num_columns:].clone()
        self.num_pads = self.num_pads if num_pads is None else num_pads

    def pads_among_last(self, num_tokens: int) -> Tensor | None:
        """The number of pads among the last recorded tokens, `[B, 1]`; None if there are none."""
        if self.is_real is None or num_tokens == 0 or self.is_real[:, -num_tokens:].all():
            return None
        return (~self.is_real[:, -num_tokens:]).long().sum(dim=1, keepdim=True)

    def crop(self, tokens_to_remove: int, num_pads: Tensor | None) -> None:
        """Go back to the token before the last `-tokens_to_remove`, and forget those before it.

        Raises:
            RuntimeError: its states were not recorded.
        """
        if self.positions is None:
            return
        if self.positions.shape[1] + tokens_to_remove < 1:
            raise RuntimeError(NOT_RECORDED.format(-tokens_to_remove))
        self.states = [take_back(state, -tokens_to_remove, num_pads, dim=1)[:, -1:].clone() for state in self.states]
        self.positions = take_back(self.positions, -tokens_to_remove, num_pads, dim=1)[:, -1:].clone()
        self.is_real = None
        if num_pads is not None:
            assert self.num_pads is not None  # the mask that marked pads also counted them
            self.num_pads = self.num_pads - num_pads

    def select(self, indices: Tensor) -> None:
        """Replace the batch by these entries of it."""
        if self.positions is None:
            return

        def selected(part: Tensor | None) -> Tensor | Any:
            return None if part is None else part.index_select(0, indices.to(part.device))

        self.states = [selected(state) for state in self.states]
        self.positions, self.num_pads = selected(self.positions), selected(self.num_pads)
        self.is_real = selected(self.is_real)


def refuse_layer_by_layer(loops: range | None, num_tokens: int | None) -> None:
    """Refuse a call of `update` as other caches take it, which would fill single layers.

    Raises:
        NotImplementedError: the loops or the number of tokens are missing.
    """
    if not isinstance(loops, range) or num_tokens is None:
        raise NotImplementedError(
            "`update` of a PLT's cache takes the keys and values of several loops with their `loops` and "
            "`num_tokens`, and is called by the model only, which keeps windows and carry in step with them: fill "
            "the cache by a forward; tools that write single layers (cache compression) are not supported."
        )


class PLTCacheMixin(Cache):
    """The parts of both caches of a PLT besides keys and values: who can read it, and whether it takes more tokens."""

    carry: Carry
    layers: list[Any]  # of one class, where transformers allows several

    def note_config(self, config: PLTConfig) -> None:
        """Remember which models can read the cache."""
        self.made_for = shape_of(config)
        self.why_closed: str | None = None  # why no token can follow, if so
        self.dtype: torch.dtype | None = None  # of the embeddings so far
        self.is_handed_over = False  # to a caller whose next positions are compared, also that of a single token

    def refuse_others(self, inputs_embeds: Tensor) -> None:
        """Check batch size and dtype of embeddings `[B, T, D]` against the cache.

        Raises:
            ValueError: either differs from that of the tokens so far.
        """
        positions, dtype = self.carry.positions, inputs_embeds.dtype
        if positions is not None and positions.shape[0] != inputs_embeds.shape[0]:
            raise ValueError(
                f"`past_key_values` holds a batch of {positions.shape[0]}, the input is one of "
                f"{inputs_embeds.shape[0]}."
            )
        if self.dtype is not None and self.dtype != dtype:
            raise ValueError(f"`past_key_values` was filled in {self.dtype}, the embeddings are {dtype}.")
        self.dtype = dtype

    def __iter__(self) -> NoReturn:
        raise TypeError(
            "A PLT's cache is no sequence of keys and values: it cannot be unpacked, nor gathered by "
            "`nn.DataParallel`, where forwards need `use_cache=False` (`DistributedDataParallel` gathers no outputs)."
        )

    @property
    def all_layers(self) -> list[Any]:
        """Everything that holds keys and values."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of all the states held."""
        layers = [layer for layer in self.all_layers if layer.is_initialized]
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) + self.carry.nbytes


@contextmanager
def extending(past_key_values: PLTCacheMixin | None, are_packed: bool) -> Iterator[None]:
    """Close a cache around a forward that extends it, and open it again at the end.

    A forward that ends in an exception has filled some layers and not others, so its cache takes no more tokens; nor
    does one whose batch entries hold several documents.
    """
    if past_key_values is None:
        yield
        return
    why_closed = PACKED if are_packed else past_key_values.why_closed
    if not torch.compiler.is_compiling():
        past_key_values.why_closed = HALF_WAY
    yield
    if past_key_values.why_closed != why_closed:
        past_key_values.why_closed = why_closed


class PLTCache(PLTCacheMixin, DynamicCache):
    """Cache of a PLT, whose memory grows with the sequence in loop 0 only, if keys are shared (paper section 3.2).

    - the layers of the cache itself hold loop 0: the shared KV `[B, Hkv, S, Dh]`, one per decoder layer;
    - `later_loops` holds one cache per later loop, with a layer for each of the looped stage: windows for
      `loop_attention="gated_window"`, full keys and values for `"own"`, nothing for `"shared"`;
    - `carry` holds the states that the next token's loops start from, and the position they belong to.

    With the gated window, a sequence of S >= W tokens takes `2 * N * Hkv * Dh * (S + (L - 1) * (W - 1)) + L * D`
    elements and one position id. Beam search, batch selection and rollback act on all three parts.

    Args:
        config: the `PLTConfig` of the model that will fill the cache.

    Example:
        >>> cache = PLTCache(model.config)
        >>> prompt = model(input_ids[:, :-1], past_key_values=cache)
        >>> step = model(input_ids[:, -1:], past_key_values=cache)
        >>> print(cache.get_seq_length(), step.logits.shape[1])
        8 1
    """

    is_croppable = True  # after `activate_past_recording()`, which transformers calls before it crops

    def __init__(self, config: PLTConfig):
        super().__init__(config=config)
        self.stage = stage = config.looped_stage
        self.layers = [FullLayer() for _ in range(config.num_hidden_layers)]
        self.later_loops: list[Any] = []  # of `Cache`, whose layers could be of several classes
        for _ in stage.full_loops(stage.loops[1:]):
            self.later_loops.append(Cache([FullLayer() for _ in stage.layers]))
        for _ in stage.windowed_loops(stage.loops[1:]):
            self.later_loops.append(Cache([WindowLayer(config.sliding_window) for _ in stage.layers]))
        self.carry = Carry()
        self.note_config(config)

    @property
    def all_layers(self) -> list[Any]:
        """Everything that holds keys and values: loop 0 and the later loops."""
        return [layer for cache in (self, *self.later_loops) for layer in cache.layers]

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        loops: range | Any = None,  # `Any` for None, which is refused
        num_tokens: int | Any = None,
        pads: Pads | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Append the keys and values of several loops and return what those loops see of their own.

        Args:
            key_states: `[B, R, Hkv, T, Dh]`.
            value_states: as the keys.
            layer_idx: the decoder layer.
            loops: the R loops they belong to.
            num_tokens: how many tokens are new; windows take the last T of them.
            pads: where pads are among the new tokens.

        Returns:
            Keys and values `[B, R, Hkv, n, Dh]`.

        Raises:
            NotImplementedError: called without the loops, as caches of other models are.
        """
        refuse_layer_by_layer(loops, num_tokens)
        new = zip(self.loops_of(layer_idx, loops), key_states.unbind(1), value_states.unbind(1), strict=True)
        seen = [layer.update(key, value, num_tokens, pads) for layer, key, value in new]
        keys, values = ([states.unsqueeze(1) for states in of_loops] for of_loops in zip(*seen, strict=True))
        return concatenate(keys, dim=1), concatenate(values, dim=1)

    def loops_of(self, layer_idx: int, loops: range) -> list[Any]:
        """The layers of the cache that hold the keys and values of these loops in a decoder layer."""
        later = [cache.layers[layer_idx - self.stage.layers.start] for cache in self.later_loops[: loops.stop - 1]]
        return [self.layers[layer_idx], *later][loops.start :]

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
        num_pads = self.carry.pads_among_last(-tokens_to_remove)
        # the carry first: its refusal leaves the whole cache untouched
        self.carry.crop(tokens_to_remove, num_pads)
        for layer in self.all_layers:
            layer.crop(tokens_to_remove, num_pads)

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
        """Repeat every entry of the batch."""
        if self.carry.positions is not None:
            self.reorder_cache(torch.arange(len(self.carry.positions)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor | list[int]) -> None:
        """Replace the batch by these entries: a bool mask, or numbers, of which negative ones count from the end.

        Raises:
            IndexError: there is no such entry; the cache is left as it was.
        """
        if self.carry.positions is not None:
            self.reorder_cache(torch.arange(len(self.carry.positions))[torch.as_tensor(indices, device="cpu")])

    def reset(self) -> None:
        for layer in self.all_layers:
            layer.reset()
            # UNTIL transformers 5.24: older ones zero a dynamic layer and keep its length
            layer.keys = layer.values = None
            layer.is_initialized = False
        self.carry.reset()
        self.why_closed = self.dtype = None
