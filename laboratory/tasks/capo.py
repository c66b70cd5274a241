# SPDX-License-Identifier: Apache-2.0
"""Capo (arXiv 2510.25741, section 6.1), reduced: how many facts the weights hold; loops should add nothing."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from .harness.definition import TEST_SEED, Experiment
from .harness.examples import NO_ANSWER, Examples
from .harness.sizes import CELLS, FIELDS, SMEARED


@dataclass(frozen=True)
class Capo:
    """People with a name of their own and random attributes; all are learned by heart, and all are asked.

    A sequence is a name's three tokens, then the attributes. There are more people than the weights can hold.
    """

    num_people: int = 3000
    num_names: int = 32  # tokens, of which each name has three
    num_attributes: int = 4
    num_values: int = 16  # of each attribute
    group: str = "attribute"

    @property
    def vocab_size(self) -> int:
        return self.num_names + self.num_values

    def test(self) -> Examples:
        generator = torch.Generator().manual_seed(TEST_SEED)
        numbers = torch.randperm(self.num_names**3, generator=generator)[: self.num_people]
        names = torch.stack([numbers // self.num_names**power % self.num_names for power in (2, 1, 0)], dim=1)
        values = torch.randint(self.num_values, (self.num_people, self.num_attributes), generator=generator)
        input_ids = torch.cat((names, self.num_names + values), dim=1)
        attributes = torch.arange(input_ids.shape[1]) - names.shape[1]
        labels = input_ids.where(attributes >= 0, NO_ANSWER)
        return Examples(input_ids, labels, attributes.expand_as(input_ids))

    def train(self, count: int, seed: int) -> Examples:
        """The people of the test again and again, each time in another order."""
        people, generator = self.test(), torch.Generator().manual_seed(seed)
        rounds = -(-count // self.num_people)
        order = torch.cat([torch.randperm(self.num_people, generator=generator) for _ in range(rounds)])[:count]
        return Examples(people.input_ids[order], people.labels[order], people.groups[order])

    def validation(self) -> Examples:
        raise NotImplementedError("Capo's people are all in its test, so none are left to choose a learning rate on.")

    def describe(self) -> dict[str, Any]:
        return asdict(self)


EXPERIMENT = Experiment(
    name="capo",
    question="How many bits of facts does each row store?",
    task=Capo(),
    metric="bits",
    fields=FIELDS | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "sliding_window": 8},
    cells=(*CELLS, SMEARED),
    learning_rates=(2e-3, 4e-3, 8e-3),
    steps=3000,
    batch_size=128,
    tuning_steps=1000,
)
