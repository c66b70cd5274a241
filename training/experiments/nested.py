# SPDX-License-Identifier: Apache-2.0
"""Reach one level deeper: induction over the answers of induction, by the distance of what must be found."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .harness.definition import TEST_SEED, Cell, Experiment, GeneratedTask
from .harness.examples import NO_ANSWER, Examples
from .harness.sizes import FIELDS
from .hops import NOWHERE, answers_of, as_examples, one_hop, random_letters
from .reach import octaves


@dataclass(frozen=True)
class Nested(GeneratedTask):
    """A token for the depth, then random letters v; every letter that has an answer is asked.

    At depth 1 the answers are those of one hop over v; at depth 2, those of one hop over the answers of depth 1. What
    is looked up there is thus the result of a lookup: two layers make it, two more find it. Training has both depths,
    because depth 2 alone is hardly learned; the test has depth 2 alone. An answer that leads to its own place is not
    asked.
    """

    alphabet: int = 8
    length: int = 32
    group: str = "distance"

    @property
    def vocab_size(self) -> int:
        return self.alphabet + 2

    def generate(self, count: int, generator: torch.Generator) -> Examples:
        return self.ask(torch.randint(1, 3, (count, 1), generator=generator), generator)

    def test(self) -> Examples:
        generator = torch.Generator().manual_seed(TEST_SEED)
        return self.ask(torch.full((self.num_tests, 1), 2), generator)

    def ask(self, depths: Tensor, generator: torch.Generator) -> Examples:
        """Sequences for the depths `[N, 1]`."""
        letters = random_letters(len(depths), self.length, self.alphabet, generator)
        inner_found = one_hop(letters)
        inner = answers_of(letters, inner_found)
        # letters without an answer are one further letter, for which nothing is asked
        found = one_hop(inner.where(inner != NO_ANSWER, self.alphabet))
        is_asked = (inner != NO_ANSWER) & (found != torch.arange(self.length))
        outer = answers_of(inner, found.where(is_asked, NOWHERE))
        answers, places = inner.where(depths == 1, outer), inner_found.where(depths == 1, found)
        return as_examples(self.alphabet + depths - 1, letters, answers, octaves(places))


EXPERIMENT = Experiment(
    name="nested",
    question="Does the limit of the window remain with two layers, where what must be found takes two layers to make?",
    task=Nested(),
    metric="accuracy",
    fields=FIELDS | {"num_hidden_layers": 2},
    cells=(
        *(Cell(row) for row in ("plain", "loop-2", "shift-2", "shared-2")),
        *(Cell("plt-2", {"sliding_window": window}) for window in (8, 1, 32)),
        Cell("deep-2"),
    ),
    learning_rates=(2e-3, 4e-3),
    steps=2000,
    batch_size=32,
)
