# SPDX-License-Identifier: Apache-2.0
"""Blocks: T queries cost T times the window, not T times T, in kernels that know no windows.

Queries are cut into blocks of W from the last one backwards, and each block is given the keys that it reaches, its own
and the W - 1 before them. Blocks become further entries of the batch. For W = 3 and T = 7, where . is missing:

    block     queries       keys
      0       .  .  0         .  .    .  .  0
      1       1  2  3         .  0    1  2  3
      2       4  5  6         2  3    4  5  6

B batch, R loops, W sliding window, Q queries, n keys, H query heads, Hkv KV heads, Dh head_dim.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .pads_plt import tail

NO_START = -(2**31)  # before every column


class BlockMask(NamedTuple):
    """The keys that each query sees, in blocks of queries, from the last query backwards."""

    visible: Tensor  # [blocks, B, 1, block, reach + block], numbers to add or booleans


def visible_in_blocks(starts: Tensor, last: Tensor, window: int, num_blocks: int, block: int, reach: int) -> Tensor:
    """The keys that each query sees, `[blocks, B, 1, block, reach + block]`.

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


def is_visible(keys: Tensor, queries: Tensor, starts: Tensor, window: int) -> Tensor:
    return (keys <= queries) & (keys > queries - window) & (keys >= starts)


def count_blocks(num_queries: int, block: int) -> int:
    """The number of blocks that hold the queries.

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
        # left padding is visible to padded queries only; surplus keys are visible to none
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
