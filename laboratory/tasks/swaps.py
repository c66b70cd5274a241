# SPDX-License-Identifier: Apache-2.0
"""State tracking in S5: boxes are swapped in pairs, and after every swap it is asked where the first object is.

N sequences, T swaps.
"""

from dataclasses import dataclass
from itertools import combinations

import torch

from .harness.definition import Cell, Experiment, GeneratedTask
from .harness.examples import NO_ANSWER, Examples
from .harness.sizes import FIELDS, SMEARED


@dataclass(frozen=True)
class Swaps(GeneratedTask):
    """T random swaps of two of `num_boxes` boxes; the object starts in box 0, and each swap may move it.

    Tokens are the pairs of boxes, then the boxes, which are answers. Scores are by the number of swaps so far, in
    fours: group 8 holds 5 to 8.
    """

    num_boxes: int = 5
    length: int = 16
    group: str = "steps"

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The swaps, in the order of their tokens."""
        return list(combinations(range(self.num_boxes), 2))

    @property
    def vocab_size(self) -> int:
        return len(self.pairs) + self.num_boxes

    def generate(self, count: int, generator: torch.Generator) -> Examples:
        # one swap more than is asked: the last answer's label needs a place after it
        swaps = torch.randint(len(self.pairs), (count, self.length + 1), generator=generator)
        first, second = torch.tensor(self.pairs)[swaps].unbind(-1)
        labels, groups = torch.full_like(swaps, NO_ANSWER), torch.zeros_like(swaps)
        box = torch.zeros(count, dtype=torch.long)
        for step in range(self.length):
            here, there = first[:, step], second[:, step]
            box = torch.where(box == here, there, torch.where(box == there, here, box))
            labels[:, step + 1] = len(self.pairs) + box
            groups[:, step + 1] = 4 * (step // 4 + 1)
        return Examples(swaps, labels, groups)


EXPERIMENT = Experiment(
    name="swaps",
    question="For how many steps does each row keep track of a state that every step may change?",
    task=Swaps(),
    metric="accuracy",
    fields=FIELDS | {"num_hidden_layers": 2, "sliding_window": 8},
    cells=(
        Cell("plain"),
        SMEARED,
        *(Cell(row) for row in ("loop-2", "shift-2", "shared-2", "plt-2", "deep-2")),
        Cell("loop-2", smears=True),
        *(Cell(row) for row in ("loop-3", "plt-3", "deep-3")),
        Cell("loop-3", smears=True),
    ),
    learning_rates=(1e-3, 2e-3, 4e-3),
    steps=1000,
    batch_size=64,
    validates=True,
)
