# SPDX-License-Identifier: Apache-2.0
"""Reach one level deeper: induction over the answers of induction, by the distance of what must be found."""

from dataclasses import dataclass

import torch

from .harness.definition import Cell, Experiment, GeneratedTask
from .harness.examples import NO_ANSWER, Examples
from .harness.sizes import FIELDS
from .hops import NOWHERE, answers_of, as_examples, one_hop, random_letters
from .reach import octaves


@dataclass(frozen=True)
class Nested(GeneratedTask):
    """Random letters v; with a the answers of one hop over v, the answers of one hop over a are asked.

    What is looked up is the answer to a first lookup: two layers compute it, two more look it up. An answer that leads
    to its own place is not asked.
    """

    alphabet: int = 8
    length: int = 32
    group: str = "distance"

    @property
    def vocab_size(self) -> int:
        return self.alphabet + 1  # a first token

    def generate(self, count: int, generator: torch.Generator) -> Examples:
        letters = random_letters(count, self.length, self.alphabet, generator)
        inner = answers_of(letters, one_hop(letters))
        # letters without an answer are one further letter, for which nothing is asked
        found = one_hop(inner.where(inner != NO_ANSWER, self.alphabet))
        is_asked = (inner != NO_ANSWER) & (found != torch.arange(self.length))
        found = found.where(is_asked, NOWHERE)
        first = torch.full((count, 1), self.alphabet)
        return as_examples(first, letters, answers_of(inner, found), octaves(found))


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
