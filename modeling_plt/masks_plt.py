# SPDX-License-Identifier: Apache-2.0
"""Masks over everything before a token in its sequence, as the attention implementations take them.

B batch, T new tokens, S cached + new, Q queries.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask

from .cache_name_plt import THEIRS
from .configuration_plt import PLTConfig
from .tail_plt import tail

DENSE = ("eager", "sdpa")  # implementations whose masks are tensors with an entry per query and key


def make_full_mask(past_key_values: Cache | None, **inputs: Any) -> Any:
    """The causal mask of T tokens over all keys, None where the kernel needs none; `inputs` as transformers takes."""
    return finite(create_causal_mask(**inputs, **{THEIRS: past_key_values}))


def mask_of_last(mask: Any, num_queries: int, num_tokens: int, key: Tensor, config: PLTConfig) -> Any:
    """The full mask of the last Q of T tokens on keys `[..., n, Dh]`, where `mask` is that of all tokens.

    Where there is none, `sdpa` would align the first of the queries with the first key: they need one of their own.
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
