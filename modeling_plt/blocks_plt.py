# SPDX-License-Identifier: Apache-2.0
"""Blocks of queries: how a window's attention costs T times the window with kernels that know no windows.

B batch, Q queries, n keys, H query heads, Hkv KV heads, Dh head_dim.
"""

from torch import Tensor
from torch.nn.functional import pad

from .prefill_plt import tail


def fold_blocks(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries in blocks that are further rows of the batch, each with the keys that it reaches.

    Query `[B, H, Q, Dh]` -> `[B * blocks, H, block, Dh]`; key and value `[B, Hkv, n, Dh]` -> `[B * blocks, Hkv,
    reach + block, Dh]`; mask `[B, >= blocks, 1, block, reach + block]` -> `[B * blocks, 1, block, reach + block]`.
    """
    block, width = mask.shape[3:]
    num_blocks = -(-query.shape[2] // block)

    def fold(states: Tensor, width: int) -> Tensor:
        # what is missing on the left is seen by queries that are not there either, and what is too much by none
        missing = num_blocks * block + width - block - states.shape[2]
        blocks = pad(states, (0, 0, missing, 0)).unfold(2, width, block)
        return blocks.permute(0, 2, 1, 4, 3).flatten(0, 1)

    mask = tail(mask, num_blocks).flatten(0, 1)
    return fold(query, block), fold(key, width), fold(value, width), mask


def unfold_blocks(output: Tensor, batch_size: int, num_queries: int) -> Tensor:
    """`[B * blocks, block, H, Dh]` -> `[B, Q, H, Dh]`."""
    return tail(output.unflatten(0, (batch_size, -1)).flatten(1, 2), num_queries)
