# SPDX-License-Identifier: Apache-2.0
"""The reach of later loops: accuracy by the distance to find, by window and by depth."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .harness.definition import Cell, Experiment, GeneratedTask
from .harness.examples import Examples
from .harness.sizes import FIELDS, SMEARED
from .hops import answers_of, as_examples, one_hop, random_letters


@dataclass(frozen=True)
class Reach(GeneratedTask):
    """One hop of induction, asked at every letter that has an answer; scored by how far back the hop leads.

    Distances are reported in octaves: group 4 holds 4 to 7.
    """

    alphabet: int = 8
    length: int = 32
    group: str = "distance"

    @property
    def vocab_size(self) -> int:
        return self.alphabet + 1  # a first token

    def generate(self, count: int, generator: torch.Generator) -> Examples:
        letters = random_letters(count, self.length, self.alphabet, generator)
        found = one_hop(letters)
        first = torch.full((count, 1), self.alphabet)
        return as_examples(first, letters, answers_of(letters, found), octaves(found))


def octaves(found: Tensor) -> Tensor:
    """The greatest power of two that is no more than the distance to what was found, `[N, T]`."""
    distances = (torch.arange(found.shape[1]) - found).clamp(min=1)
    return 2 ** distances.double().log2().floor().long()


WINDOWS = (8, 1, 2, 4, 16, 32)  # the first one is tuned, for all of them; the last one is everything
EXPERIMENT = Experiment(
    name="reach",
    question="How far back can a later loop find what an earlier loop has composed?",
    task=Reach(),
    metric="accuracy",
    fields=FIELDS | {"num_hidden_layers": 1},
    cells=(
        *(Cell(row) for row in ("plain", "loop-2", "shift-2", "shared-2")),
        SMEARED,
        *(Cell("plt-2", {"sliding_window": window}) for window in WINDOWS),
        *(Cell("plt-3", {"sliding_window": window}) for window in (8, 1)),
        Cell("deep-2"),
        *(Cell("plain", {"num_hidden_layers": layers}) for layers in (2, 3)),
        *(Cell("plt-2", {"num_hidden_layers": layers, "sliding_window": 1}) for layers in (2, 3)),
    ),
    learning_rates=(2e-3, 4e-3, 8e-3),
    steps=600,
    batch_size=32,
)
