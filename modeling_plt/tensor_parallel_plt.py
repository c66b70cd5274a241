# SPDX-License-Identifier: Apache-2.0
"""Parameters that are split by heads over several processes (tensor parallelism), where they are no `nn.Linear`."""

from typing import TypeGuard

import torch
from torch import Tensor

if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor, Partial, Replicate


def is_split(parameter: Tensor) -> "TypeGuard[DTensor]":
    return torch.distributed.is_available() and isinstance(parameter, DTensor)


def own_heads(parameter: Tensor) -> Tensor:
    """The part of a parameter `[H, ...]` that this process holds."""
    return parameter.to_local() if is_split(parameter) else parameter


def read_by_all_heads(states: Tensor, parameter: Tensor) -> Tensor:
    """States that each process reads for its own heads of a parameter: their gradients are summed over processes."""
    if not is_split(parameter):
        return states
    everywhere = DTensor.from_local(states, parameter.device_mesh, [Replicate()], run_check=False)
    return everywhere.to_local(grad_placements=[Partial()])
