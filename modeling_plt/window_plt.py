# SPDX-License-Identifier: Apache-2.0
"""The window: the last W of its own keys that a later loop sees; what holds them, and what hides the others.

B batch, R loops, T new tokens, S cached + new, W sliding window, Q queries, n keys, H query heads, Hkv KV heads, Dh
head_dim.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import create_sliding_window_causal_mask

from .cache_name_plt import THEIRS
from .configuration_plt import PLTConfig
from .masks_plt import DENSE, finite
from .pads_plt import Pads, join, take_back
from .tail_plt import tail

NO_START = -(2**31)  # before every column

NOT_RECORDED = (
    "Cannot take back {} tokens: the cache no longer holds the states before them. Call `activate_past_recording()` "
    "before the tokens that may have to be taken back."
)


def last_columns(states: Tensor, num_columns: int) -> Tensor:
    """The last `num_columns` entries of dimension -2, or all if there are fewer; `num_columns` may be 0."""
    return states[..., max(states.shape[-2] - num_columns, 0) :, :]


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


def write_ring(ring: Tensor, new: Tensor, columns: Tensor, pads: Pads | None) -> Tensor:
    """Put the last of the T tokens at `columns` `[T]` into a ring, where column c is at c modulo its size n.

    `new` `[B, heads, <= T, Dh]`: a pruned prefill gives only the last tokens, whose windows reach no further back.
    Returns what their queries see: the ring itself for a single token, else the n - 1 columns before the tokens and
    theirs, in order.
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


# What hides the keys that are not in the window. Kernels that know no windows get blocks of queries, each with the
# keys that it reaches: T queries then cost T times the window, not T times T.


class BlockMask(NamedTuple):
    """Which keys each query sees, in blocks of queries, from the last query backwards."""

    visible: Tensor  # [blocks, B, 1, block, reach + block], numbers to add or booleans


def make_window_mask(
    past_key_values: Any, starts: Tensor, num_past: int | Tensor, config: PLTConfig, **inputs: Any
) -> Any:
    """The mask of T tokens over a later loop's own keys, as the attention implementation takes it.

    For `eager` and `sdpa` `[B, 1, T, n]`, or a `BlockMask` for more tokens than the window holds.

    Args:
        past_key_values: a filled cache; None if there is none.
        starts: `[B, T]`, see `sequence_starts`.
        num_past: the tokens in the cache.
        inputs: as transformers takes them, for its own masks.
    """
    if config._attn_implementation not in DENSE:
        window_cache = None if past_key_values is None else past_key_values.later_loops[0]
        return create_sliding_window_causal_mask(config=config, **inputs, **{THEIRS: window_cache})
    num_tokens, window, dtype = starts.shape[1], config.sliding_window, inputs["inputs_embeds"].dtype
    last = num_past + torch.arange(num_tokens, device=starts.device)[-1]
    is_ring = past_key_values is not None and past_key_values.is_compileable
    if is_ring and num_tokens == 1:
        return as_mask(ring_mask(starts, last, window, past_key_values.ring_size), config, dtype)
    num_kept: Any = past_key_values.ring_size - 1 if is_ring else min(window - 1, num_past)
    is_traced = torch.compiler.is_compiling()
    if num_tokens == 1 or torch.compiler.is_exporting() or (not is_traced and num_tokens <= window):
        # an exported program takes any length, and so cannot count blocks
        visible = visible_in_blocks(starts, last, window, 1, block=num_tokens, reach=num_kept)[0]
        return as_mask(visible, config, dtype)
    # a reach that depends on the length would make traced code another graph for each
    reach = window - 1 if is_traced else min(window - 1, num_kept + num_tokens - window)
    num_blocks = count_blocks(num_tokens, window)
    visible = visible_in_blocks(starts, last, window, num_blocks, block=window, reach=reach)
    return BlockMask(as_mask(visible, config, dtype))


def visible_in_blocks(starts: Tensor, last: Tensor, window: int, num_blocks: int, block: int, reach: int) -> Tensor:
    """Which keys each query sees, `[blocks, B, 1, block, reach + block]`.

    Each block of queries sees its own keys and the `reach` before them. The last block ends with the last token; the
    first may begin before the first.

    Args:
        starts: `[B, T]`, see `sequence_starts`.
        last: the column of the last token, a single number.
    """
    num_queries = num_blocks * block
    starts = pad(starts, (num_queries - starts.shape[1], 0), value=NO_START)
    # columns from here on count from the first query of their block
    firsts = last + 1 - num_queries + torch.arange(num_blocks, device=starts.device) * block
    starts = as_new(starts.unflatten(1, (-1, block)).transpose(0, 1)) - firsts[:, None, None]
    queries = torch.arange(block, device=starts.device).unsqueeze(1)
    keys = torch.arange(-reach, block, device=starts.device)
    return is_visible(keys, queries, starts.unsqueeze(3), window).unsqueeze(2)


def ring_mask(starts: Tensor, last: Tensor, window: int, size: int) -> Tensor:
    """The same for one token `[B, 1]` and n keys that are in a ring, column c at c modulo n: `[B, 1, 1, n]`."""
    keys = last - (last - torch.arange(size, device=starts.device)) % size
    return is_visible(keys, last, starts, window)[:, None, None]


def is_visible(keys: Tensor, queries: Tensor, starts: Tensor, window: int) -> Tensor:
    return (keys <= queries) & (keys > queries - window) & (keys >= starts)


def as_mask(visible: Tensor, config: PLTConfig, dtype: torch.dtype) -> Tensor:
    """A mask as `eager` and `sdpa` take it: numbers to add to the scores, or booleans."""
    if config._attn_implementation == "sdpa":
        return visible
    return finite(torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min))


def count_blocks(num_queries: int, block: int) -> int:
    """How many blocks hold the queries.

    In traced code at least two: whether there is one is a question that would make another graph.
    """
    num_blocks = -(-num_queries // block)
    return torch.sym_max(2, num_blocks) if torch.compiler.is_compiling() else num_blocks


def fold_blocks(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries in blocks that are further entries of the batch, each with the keys that it reaches.

    Query `[B, R, H, Q, Dh]` -> `[blocks * B, R, H, block, Dh]`; key and value `[B, R, Hkv, n, Dh]` -> `[blocks * B, R,
    Hkv, reach + block, Dh]`; mask -> `[blocks * B, 1, block, reach + block]`.
    """
    block, width = mask.visible.shape[3:]
    num_blocks = count_blocks(query.shape[3], block)

    def fold(states: Tensor, width: int) -> Tensor:
        # keys that are missing on the left belong to queries that are not there either; surplus ones are seen by none
        missing = num_blocks * block + width - block - states.shape[3]
        blocks = pad(states, (0, 0, missing, 0)).unfold(3, width, block)
        # blocks before the batch: flattened the other way round, traced code would ask whether there is only one block
        return blocks.permute(3, 0, 1, 2, 5, 4).flatten(0, 1)

    visible = tail(mask.visible, num_blocks, dim=0).flatten(0, 1)
    return fold(query, block), fold(key, width), fold(value, width), visible


def unfold_blocks(output: Tensor, batch_size: int, num_queries: int) -> Tensor:
    """`[blocks * B, R, block, H, Dh]` -> `[B, R, Q, H, Dh]`."""
    output = output.unflatten(0, (-1, batch_size)).permute(1, 2, 0, 3, 4, 5).flatten(2, 3)
    return as_new(output.narrow(2, output.shape[2] - num_queries, num_queries))


def as_new(states: Tensor) -> Tensor:
    """A copy in order: for strides that depend on the number of blocks, traced code would make several graphs."""
    return states.clone(memory_format=torch.contiguous_format)
