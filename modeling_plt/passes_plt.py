# SPDX-License-Identifier: Apache-2.0
"""The schedule: which loops run together, through which layers, at how many positions.

B batch, L loops, N layers, T new tokens, D hidden.
"""

from typing import Any, NamedTuple

from torch import Tensor

from .configuration_plt import PLTConfig
from .pads_plt import Pads, join
from .tail_plt import tail


class Pass(NamedTuple):
    """One run through consecutive layers.

    With the shift, later loops of a single position read the carry, not each other, so all run together; of several
    positions, loops run one after another. A pass is therefore R loops at T positions, and R or T is 1.
    """

    loops: range
    layers: range
    spans: list[int]  # spans[n]: how many of the last positions enter the n-th layer; at the end: leave the last layer


def passes(config: PLTConfig, num_tokens: int, num_outputs: int, in_turn: bool) -> list[Pass]:
    """The passes of a forward over T tokens that returns the last loop's states at the last `num_outputs` (0: all).

    With `in_turn`, loops of a single position run one after another too.
    """
    spans = needed_positions(config, num_tokens, num_outputs)
    layers, loops = range(config.num_hidden_layers), range(config.num_loops)
    if config.loop_shift and num_tokens == 1 and not in_turn:
        return [Pass(loops, layers, spans[0])]
    return [Pass(range(loop_idx, loop_idx + 1), layers, spans[loop_idx]) for loop_idx in loops]


def needed_positions(config: PLTConfig, num_tokens: int, num_outputs: int) -> list[list[int]]:
    """Exact pruned prefill: how many of the last positions each loop needs, `[loop][n]`, `n` as in `Pass.spans`.

    In each layer, an output depends on the positions that its loop sees of its own (the W - 1 before it); at the
    start of a loop, the shift adds one more. What is before is never read, so leaving it out changes nothing.
    """
    if num_outputs == 0:
        return [[num_tokens] * (config.num_hidden_layers + 1)] * config.num_loops
    spans: list[list[int]] = []
    for loop_idx in reversed(range(config.num_loops)):
        window = None if loop_idx == 0 else config.own_window
        reach = num_tokens if window is None else max(window - 1, 0)
        span = [min(num_outputs, num_tokens)]
        for _ in range(config.num_hidden_layers):
            span.insert(0, min(span[0] + reach, num_tokens))
        spans.insert(0, span)
        num_outputs = span[0] + config.loop_shift
    return spans


def shift(states: Tensor | Any, carry: Tensor, follows: Tensor, pads: Pads | None) -> Tensor:
    """States delayed by one token, the carry first, and zeros where a sequence starts (paper section 3.1).

    Args:
        states: `[B, n, D]` of the last n of T tokens; None for a single one, whose loops run together.
        carry: the state `[B, 1, D]` before them.
        follows: `[B, T]`, whether a token continues the one before it.
        pads: where pads are among the tokens.

    Returns:
        `[B, n, D]`.
    """
    delayed = carry if follows.shape[1] == 1 else join(carry, states, pads, dim=1)[:, :-1]
    return delayed.masked_fill(~tail(follows, delayed.shape[1]).unsqueeze(-1), 0)
