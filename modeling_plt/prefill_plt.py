# SPDX-License-Identifier: Apache-2.0
"""Exact pruned prefill: which positions each layer of each loop needs when only the last outputs are wanted."""

from torch import Tensor

from .configuration_plt import PLTConfig


def needed_positions(config: PLTConfig, num_positions: int, num_outputs: int) -> list[list[int]]:
    """How many of the last positions enter each layer, and leave the last one, for every loop.

    An output reaches back over the keys that its loop sees of its own, layer by layer, and at the start of a loop over
    one position more, the shift. Whatever lies before is never read, so leaving it out changes nothing.

    Args:
        num_positions: T.
        num_outputs: the last so many positions whose state is wanted of the last loop; 0 for all.

    Returns:
        `[loop][n]` for n in 0..N: inputs of layer n, or for n = N outputs of the last layer.
    """
    if num_outputs == 0:
        return [[num_positions] * (config.num_hidden_layers + 1)] * config.num_loops
    spans = []
    for loop_idx in reversed(range(config.num_loops)):
        own_keys = "own" if loop_idx == 0 else config.loop_attention
        reach = {"own": num_positions, "gated_window": config.sliding_window - 1, "shared": 0}[own_keys]
        span = [min(num_outputs, num_positions)]
        for _ in range(config.num_hidden_layers):
            span.insert(0, min(span[0] + reach, num_positions))
        spans.insert(0, span)
        num_outputs = span[0] + config.loop_shift
    return spans


def tail(states: Tensor, num_positions: int, dim: int = 1) -> Tensor:
    """The last positions of `[B, T, ...]`, or where `dim` says that T is.

    Traced code sees that all of T is all of it, which `-T:` would not show.
    """
    start = states.shape[dim] - num_positions
    return states.narrow(dim, start, num_positions) if start else states
