# SPDX-License-Identifier: Apache-2.0
"""Products of a few rows in eager float32 on CPUs with AVX2, for which PyTorch's libraries read weights row by row.

An explicit call on a loaded model; this file is not part of saved folders.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

MOST_ROWS = 4  # beyond, libraries read weights once too,
MOST_ROWS_OF_THREADS = 32  # but they divide rows among threads, and of swapped products the weights


def few_rows_linear(module: nn.Linear, input: Tensor) -> Tensor:
    """`[..., in]` -> `[..., out]`, a few rows as `(W x^T)^T`, for which libraries have a kernel that reads W once."""
    weight, bias = module.weight, module.bias
    num_rows = math.prod(input.shape[:-1])
    most_rows = MOST_ROWS if torch.get_num_threads() == 1 else MOST_ROWS_OF_THREADS
    # quantizers and parallel training replace the parameter, autocast the dtype
    is_usual = type(weight) is nn.Parameter and input.is_cpu and not torch.is_autocast_enabled("cpu")
    is_usual = is_usual and input.dtype == torch.float32 and not torch.compiler.is_compiling()
    if not is_usual or not 1 < num_rows <= most_rows:
        return nn.functional.linear(input, weight, bias)
    # up to 16, powers of two take the least time: three rows would take half as long again as four
    missing = (1 << (num_rows - 1).bit_length()) - num_rows if num_rows < 16 else 0
    rows = pad(input.reshape(num_rows, -1), (0, 0, 0, missing))
    # in row order again: attention and the next such product would be slower without
    output = linear(weight, rows).t()[:num_rows].contiguous()
    output = output if bias is None else output + bias
    return output.view(*input.shape[:-1], -1)


def speed_up_few_rows(model: nn.Module) -> int:
    """Let the `nn.Linear` of a model compute by `few_rows_linear`, where that was measured to win; returns how many.

    For eager decoding in float32 on a CPU of capability AVX2. The modules stay `nn.Linear`, so that quantizers and
    adapters still find them. On AVX-512 the libraries are fast by themselves; compiled code is left to inductor.

    Raises:
        ValueError: the model holds no `nn.Linear` in float32 on a CPU, or the CPU has another capability.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if capability != "AVX2":
        raise ValueError(f"Swapped products win on CPUs of capability AVX2 only, this one has {capability}.")
    found = [
        module
        for module in model.modules()
        if type(module) is nn.Linear and type(module.weight) is nn.Parameter and "forward" not in vars(module)
    ]
    found = [module for module in found if module.weight.is_cpu and module.weight.dtype == torch.float32]
    if not found:
        raise ValueError("Swapped products are for float32 on a CPU, got a model without such an `nn.Linear`.")
    for module in found:
        module.forward = partial(few_rows_linear, module)  # type: ignore[method-assign]  # of this one module
    return len(found)
