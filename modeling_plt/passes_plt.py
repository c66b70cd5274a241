# SPDX-License-Identifier: Apache-2.0
"""The schedule: which loops run together, through which layers, at how many positions.

B batch, L loops, T new tokens, D hidden.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from .cache_plt import PLTCacheMixin
from .configuration_plt import PLTConfig, Stage
from .pads_plt import Pads, join, tail
from .sequence_plt import NewTokens


class Pass(NamedTuple):
    """One run through the layers of a stage, with everything that they need besides the states.

    With the shift, later loops of a single token read the carry, not each other, so all run together; of several
    tokens, loops run one after another. A pass is therefore R loops of T tokens, and R or T is 1.
    """

    stage: Stage
    loops: range
    spans: list[int]  # spans[n]: how many of the last positions enter the n-th layer; at the end: leave the last layer
    tokens: NewTokens
    position_embeddings: tuple[Tensor, Tensor]  # cosines and sines [B, 1, 1, T, Dh]; pruned, the last of them count
    past_key_values: PLTCacheMixin | None  # to extend

    @property
    def full_loops(self) -> range:
        """The loops that attend to all their own keys."""
        return self.stage.full_loops(self.loops)

    @property
    def windowed_loops(self) -> range:
        """The loops that attend to a window of their own keys."""
        return self.stage.windowed_loops(self.loops)

    @property
    def has_last_loop(self) -> bool:
        """Whether the pass has the last loop, whose states and attentions are recorded and go on to the next stage."""
        return self.loops.stop == self.stage.loops.stop

    def num_queries(self, layer_idx: int) -> int:
        """Q, how many of the last positions leave a layer."""
        return self.spans[layer_idx - self.stage.layers.start + 1]


def schedule(
    config: PLTConfig, num_tokens: int, num_outputs: int, in_turn: bool
) -> Iterator[tuple[Stage, range, list[int]]]:
    """The passes of a forward over T tokens that returns the last `num_outputs` positions (0: all).

    Stages, loops and spans, as in `Pass`. With `in_turn`, loops of a single position run one after another too.
    """
    run_together = config.loop_shift and num_tokens == 1 and not in_turn
    needed = needed_positions(config, num_tokens, num_outputs)
    for stage, spans in zip(config.stages, needed, strict=True):
        for loops in [stage.loops] if run_together else [range(idx, idx + 1) for idx in stage.loops]:
            yield stage, loops, spans[loops.start]


def needed_positions(config: PLTConfig, num_tokens: int, num_outputs: int) -> list[list[list[int]]]:
    """Exact pruned prefill: how many of the last T positions are needed, `[stage][loop][n]`, `n` as in `Pass.spans`.

    In each layer, an output depends on the positions that its loop sees of its own (the W - 1 before it); at the
    start of a loop, the shift adds one more. Earlier positions are never read, so leaving them out changes nothing.

    Args:
        num_outputs: how many of the last positions are wanted; 0 for all.
    """
    if num_outputs == 0:
        return [[[num_tokens] * (len(stage.layers) + 1)] * len(stage.loops) for stage in config.stages]
    num_wanted = min(num_outputs, num_tokens)
    needed: list[list[list[int]]] = []
    for stage in reversed(config.stages):
        of_stage: list[list[int]] = []
        full, windowed = stage.full_loops(stage.loops), stage.windowed_loops(stage.loops)
        for loop_idx in reversed(stage.loops):
            reach = num_tokens if loop_idx in full else config.sliding_window - 1 if loop_idx in windowed else 0
            spans = [min(num_wanted, num_tokens)]
            for _ in stage.layers:
                spans.insert(0, min(spans[0] + reach, num_tokens))
            of_stage.insert(0, spans)
            # the loop before is read one position earlier
            num_wanted = spans[0] + 1 if config.loop_shift else spans[0]
        needed.insert(0, of_stage)
        num_wanted = of_stage[0][0]  # loop 0 sees the most, and every loop starts from these positions
    return needed


def shift(states: Tensor | None, carry: Tensor, follows: Tensor, pads: Pads | None) -> Tensor:
    """States delayed by one token, the carry first, and zeros where a sequence starts (paper section 3.1).

    Args:
        states: `[B, n, D]` of the last n of T tokens; None for a single one, whose loops run together.
        carry: the state `[B, 1, D]` before them.
        follows: `[B, T]`, whether a token continues the one before it.
        pads: where pads are among the tokens.

    Returns:
        `[B, n, D]`.
    """
    delayed = carry if states is None else join(carry, states, pads, dim=1)[:, :-1]
    return delayed.masked_fill(~tail(follows, delayed.shape[1]).unsqueeze(-1), 0)
