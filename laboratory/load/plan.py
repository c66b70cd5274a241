# SPDX-License-Identifier: Apache-2.0
"""What is measured, and one piece of it."""

from collections.abc import Iterator
from dataclasses import dataclass

from measuring_plt.rows import IN_TURN

# plain and both ways through the loops of one model
ROWS = ("plain", "plt-2", IN_TURN)
MODELS = {IN_TURN: "plt-2"}  # the row whose weights another row serves
SHARES = (0.25, 0.5, 1.25)  # of what plain takes at most, if no rates are given


@dataclass(frozen=True)
class Plan:
    """The load of every row.

    Attributes:
        size: a name in `measuring_plt.sizes.SIZES`.
        dtype: that of weights and cache.
        prompt: tokens of a prompt, from half of it to one and a half.
        tokens: tokens of an answer, likewise.
        rates: requests that come in a second.
        minutes: in which requests come to a row, at all rates and in all rounds together.
        rounds: in each of which every row has its turn at every rate.
        leaving: how many more requests come, for each of the rate's, whose clients leave before the end.
    """

    size: str
    dtype: str
    prompt: int
    tokens: int
    rates: list[float]
    minutes: float
    rounds: int
    leaving: float

    @property
    def seconds(self) -> float:
        """In which requests come to one row, at one rate and in one round."""
        return 60 * self.minutes / (len(self.rates) * self.rounds)

    @property
    def longest(self) -> int:
        """Tokens of a request at most, a multiple of a block."""
        return -(-3 * (self.prompt + self.tokens) // 128) * 64


@dataclass(frozen=True)
class Piece:
    """The load of one row, at one rate and in one round."""

    row: str
    rate: float
    round: int

    @property
    def name(self) -> str:
        return f"round-{self.round}_rate-{self.rate:g}_{self.row.replace(', ', '-').replace(' ', '-')}"


def pieces(plan: Plan) -> Iterator[Piece]:
    """All of them in the order of their turns: what a busy machine does to one row it does to its neighbours, too."""
    for number in range(plan.rounds):
        first = number % len(ROWS)
        for rate in plan.rates:
            for row in ROWS[first:] + ROWS[:first]:
                yield Piece(row, rate, number)
