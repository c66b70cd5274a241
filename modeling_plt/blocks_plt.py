# SPDX-License-Identifier: Apache-2.0
"""Blocks of queries: how a window's attention costs T times the window with kernels that know no windows.

B batch, Q queries, n keys, H query heads, Hkv KV heads, Dh head_dim.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .prefill_plt import tail


def count_blocks(num_queries: int, block: int) -> int:
    """How many blocks hold so many queries.

    In traced code at least two: whether there is one is a question that would make another graph.
    """
    num_blocks = -(-num_queries // block)
    return torch.sym_max(2, num_blocks) if torch.compiler.is_compiling() else num_blocks


def fold_blocks(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries in blocks that are further rows of the batch, each with the keys that it reaches.

    Query `[B, H, Q, Dh]` -> `[blocks * B, H, block, Dh]`; key and value `[B, Hkv, n, Dh]` -> `[blocks * B, Hkv,
    reach + block, Dh]`; mask `[>= blocks, B, 1, block, reach + block]` -> `[blocks * B, 1, block, reach + block]`.
    """
    block, width = mask.shape[3:]
    num_blocks = count_blocks(query.shape[2], block)

    def fold(states: Tensor, width: int) -> Tensor:
        # what is missing on the left is seen by queries that are not there either, and what is too much by none
        missing = num_blocks * block + width - block - states.shape[2]
        blocks = pad(states, (0, 0, missing, 0)).unfold(2, width, block)
        # blocks before rows: flattened the other way round, traced code would ask whether there is only one block
        return blocks.permute(2, 0, 1, 4, 3).flatten(0, 1)

    mask = tail(mask, num_blocks, dim=0).flatten(0, 1)
    return fold(query, block), fold(key, width), fold(value, width), mask


def as_new(states: Tensor) -> Tensor:
    """A copy in order: for strides that depend on the number of blocks, traced code would make several graphs."""
    return states.clone(memory_format=torch.contiguous_format)


def unfold_blocks(output: Tensor, batch_size: int, num_queries: int) -> Tensor:
    """`[blocks * B, block, H, Dh]` -> `[B, Q, H, Dh]`."""
    output = output.unflatten(0, (-1, batch_size)).transpose(0, 1).flatten(1, 2)
    return as_new(output.narrow(1, output.shape[1] - num_queries, num_queries))
