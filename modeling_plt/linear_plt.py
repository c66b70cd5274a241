# SPDX-License-Identifier: Apache-2.0
"""Linear maps of the few rows of a decode step on a CPU, with weights that are read once for all of them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

MOST_SUMS = 8  # rows of compiled sums; beyond, libraries read weights once too
MOST_SWAPPED = 4  # rows of swapped products; beyond, libraries read weights once too,
MOST_SWAPPED_BY_THREADS = 32  # but they divide rows among threads, and of swapped products the weights
BLOCK = 4096  # terms that inductor adds up in registers; of more it makes a cascade of sums
OUTPUTS = 2  # added up side by side: the memory has more reads to serve at a time


class PLTLinear(nn.Linear):
    """`nn.Linear` to which a few rows cost little more than one, on a CPU.

    Libraries take two rows for a matrix and need twice the time of one, in float32 as in bfloat16; the loops of a
    token are such rows. On other devices, under autocast, for many rows, and for weights that quantizers or parallel
    training have replaced, it is `nn.Linear`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`."""
        weight, bias = self.weight, self.bias
        num_rows = math.prod(input.shape[:-1])
        # quantizers and parallel training replace the parameter, autocast the dtype; an exported number is no int
        is_usual = type(weight) is nn.Parameter and not torch.is_autocast_enabled("cpu")
        is_known = input.is_cpu and isinstance(num_rows, int) and num_rows > 0
        product = product_of_few(num_rows, input.dtype) if is_usual and is_known else None
        if product is None:
            return linear(input, weight, bias)
        output = product(weight, input.reshape(num_rows, -1))
        output = output if bias is None else output + bias
        return output.view(*input.shape[:-1], -1)


def product_of_few(num_rows: int, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor] | None:
    """What computes a product of so many rows faster than `linear` on a CPU, if anything does."""
    if torch.compiler.is_dynamo_compiling():
        return add_up_rows if num_rows <= MOST_SUMS else None
    most_rows = MOST_SWAPPED if torch.get_num_threads() == 1 else MOST_SWAPPED_BY_THREADS
    return swapped_product if dtype == torch.float32 and 1 < num_rows <= most_rows else None


def swapped_product(weight: Tensor, rows: Tensor) -> Tensor:
    """`[out, in]`, `[R, in]` -> `[R, out]` as `W x^T`, for which libraries have a kernel in float32."""
    num_rows = len(rows)
    # up to 16, powers of two take the least time: three rows would take half as long again as four
    missing = (1 << (num_rows - 1).bit_length()) - num_rows if num_rows < 16 else 0
    rows = pad(rows, (0, 0, 0, missing)) if missing else rows
    # in row order again: attention and the next such product would be slower without
    return linear(weight, rows).t()[:num_rows].contiguous()


def add_up_rows(weight: Tensor, rows: Tensor) -> Tensor:
    """`[out, in]`, `[R, in]` -> `[R, out]`, as sums that inductor fuses into one loop over the weights."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    # a row too many, because inductor stores what it concatenates; it would recompute the rows for every output
    rows = torch.cat((rows.to(dtype), torch.zeros_like(rows[:1], dtype=dtype)))[:-1]
    block = weight.shape[1]
    while block > BLOCK and block % 2 == 0:
        block //= 2
    outputs = OUTPUTS if weight.shape[0] % OUTPUTS == 0 else 1
    terms, rows = weight.to(dtype).unflatten(1, (-1, block)), rows.unflatten(1, (-1, block))
    parts = terms.unflatten(0, (outputs, -1)).unbind(0)
    sums = [(part * row).sum(dim=-1) for row in rows.unbind(0) for part in parts]
    # inductor would copy sums over one block
    sums = [total.squeeze(-1) if total.shape[1] == 1 else total.sum(dim=-1) for total in sums]
    return torch.cat(sums).unflatten(0, (len(rows), -1)).to(weight.dtype)
