# SPDX-License-Identifier: Apache-2.0
"""The last positions of a tensor."""

from torch import Tensor


def tail(states: Tensor, num_positions: int, dim: int = 1) -> Tensor:
    """The last positions of `[B, T, ...]`, or where `dim` says that T is.

    All of T is the tensor itself: traced code would not see that in a slice `-T:`.
    """
    start = states.shape[dim] - num_positions
    return states.narrow(dim, start, num_positions) if start else states
