# SPDX-License-Identifier: Apache-2.0
"""Masks over everything before a token in its sequence, and over a later loop's window, as kernels take them.

B batch, T new tokens, S cached + new, Q queries, n keys.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from .blocks_plt import BlockMask, count_blocks, is_visible, visible_in_blocks
from .configuration_plt import PLTConfig
from .names_plt import THEIRS
from .pads_plt import tail

DENSE = ("eager", "sdpa")  # implementations whose masks are tensors with an entry per query and key


def make_full_mask(past_key_values: Cache | None, **inputs: Any) -> Any:
    """The causal mask of T tokens over all keys, None where the kernel needs none; `inputs` as transformers takes."""
    return finite(create_causal_mask(**inputs, **{THEIRS: past_key_values}))


def mask_of_last(mask: Any, num_queries: int, num_tokens: int, key: Tensor, config: PLTConfig) -> Any:
    """The full mask of the last Q of T tokens on keys `[..., n, Dh]`, where `mask` is that of all tokens.

    Without one, `sdpa` would align the first of the queries with the first key: the last queries need their own.
    """
    if mask is not None or num_queries == num_tokens or config._attn_implementation != "sdpa":
        return mask
    visible = torch.ones(num_queries, key.shape[-2], dtype=torch.bool, device=key.device)
    return visible.tril(num_tokens - num_queries)[None, None]


def cut_mask(mask: Any, num_queries: int, num_keys: int) -> Any:
    """The part of a mask for the last queries on the last keys."""
    if is_dense(mask):
        return tail(tail(mask, num_queries, dim=2), num_keys, dim=3)
    return tail(mask, num_keys) if isinstance(mask, Tensor) else mask


def is_dense(mask: Any) -> bool:
    """Whether a mask has an entry for each query and key, as those of `eager` and `sdpa`."""
    return isinstance(mask, Tensor) and mask.dim() == 4


def finite(mask: Any) -> Any:
    """A mask whose numbers are finite in the float32 softmax of `eager` too: rows of only -inf would give NaN."""
    if isinstance(mask, Tensor) and mask.dtype == torch.float64:
        return mask.clamp(min=torch.finfo(torch.float32).min)
    return mask


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
    # the reach is the number of keys that a block sees before its own; in traced code it is the same for all lengths,
    # which would otherwise have a graph each
    reach = window - 1 if is_traced else min(window - 1, num_kept + num_tokens - window)
    num_blocks = count_blocks(num_tokens, window)
    visible = visible_in_blocks(starts, last, window, num_blocks, block=window, reach=reach)
    return BlockMask(as_mask(visible, config, dtype))


def ring_mask(starts: Tensor, last: Tensor, window: int, size: int) -> Tensor:
    """The window mask of one token `[B, 1]` over n keys in a ring, column c at c modulo n: `[B, 1, 1, n]`."""
    keys = last - (last - torch.arange(size, device=starts.device)) % size
    return is_visible(keys, last, starts, window)[:, None, None]


def as_mask(visible: Tensor, config: PLTConfig, dtype: torch.dtype) -> Tensor:
    """A mask as `eager` and `sdpa` take it: numbers to add to the scores, or booleans."""
    if config._attn_implementation == "sdpa":
        return visible
    return finite(torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min))
