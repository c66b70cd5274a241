# SPDX-License-Identifier: Apache-2.0
"""Mano (arXiv 2510.25741, section 6.2), reduced: the values of prefix expressions modulo a small prime."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .harness.definition import Experiment, GeneratedTask
from .harness.examples import NO_ANSWER, Examples
from .harness.sizes import CELLS, FIELDS, SMEARED

OPERATORS = (operator.add, operator.sub, operator.mul)


@dataclass(frozen=True)
class Mano(GeneratedTask):
    """A first token, then a prefix expression of 1 to `max_operations` operations.

    Where a part of the expression ends, the value of the longest such part is asked, at the end that of the whole. The
    paper asks for the latter alone; asking for parts gives more answers in fewer steps. The group is the number of
    operations of what is asked.

    Tokens are the numbers below the modulus, then + - *, and the first token. Shorter sequences are filled with zeros.
    The test has no expression of one operation: there are too few to keep some from training.
    """

    modulus: int = 7
    max_operations: int = 6
    group: str = "operations"

    @property
    def vocab_size(self) -> int:
        return self.modulus + len(OPERATORS) + 1

    def generate(self, count: int, generator: torch.Generator) -> Examples:
        operations = torch.randint(1, self.max_operations + 1, (count,), generator=generator)
        # one draw for all: drawing number by number would take most of the time
        draws = torch.rand(count, 3 * self.max_operations + 1, generator=generator).tolist()
        return self.ask(
            [
                random_expression(number, self.modulus, iter(row))
                for number, row in zip(operations.tolist(), draws, strict=True)
            ]
        )

    def test(self) -> Examples:
        examples = super().test()
        asked = examples.groups.max(dim=1).values >= 2
        return Examples(examples.input_ids[asked], examples.labels[asked], examples.groups[asked])

    def ask(self, expressions: list[list[int]]) -> Examples:
        """Sequences with a label one place after the end of each part that has an operation."""
        length = 2 * self.max_operations + 3  # the first token, the longest expression, and where its answer is asked
        input_ids = torch.zeros(len(expressions), length, dtype=torch.long)
        labels, groups = torch.full_like(input_ids, NO_ANSWER), torch.zeros_like(input_ids)
        for number, expression in enumerate(expressions):
            input_ids[number, : len(expression) + 1] = torch.tensor([self.vocab_size - 1, *expression])
            for end, (value, operations) in ends(expression, self.modulus).items():
                if operations > 0:
                    labels[number, end + 1], groups[number, end + 1] = value, operations
        return Examples(input_ids, labels, groups)


def random_expression(operations: int, modulus: int, draws: Iterator[float]) -> list[int]:
    """Prefix tokens of an expression; the first operation's sides share the others in every proportion."""
    if operations == 0:
        return [int(next(draws) * modulus)]
    left = int(next(draws) * operations)
    first = modulus + int(next(draws) * len(OPERATORS))
    sides = (random_expression(number, modulus, draws) for number in (left, operations - 1 - left))
    return [first, *(token for side in sides for token in side)]


def ends(expression: list[int], modulus: int) -> dict[int, tuple[int, int]]:
    """Value and number of operations of the longest part that ends before each position, where one does."""
    found: dict[int, tuple[int, int]] = {}

    def read(start: int) -> int:
        """Read the part that begins there; where it ends."""
        token, end = expression[start], start + 1
        if token < modulus:
            found[end] = (token, 0)
            return end
        middle = read(end)
        end = read(middle)
        (left, some), (right, others) = found[middle], found[end]
        found[end] = (OPERATORS[token - modulus](left, right) % modulus, some + others + 1)
        return end

    read(0)
    return found


EXPERIMENT = Experiment(
    name="mano",
    question="How many operations of modular arithmetic does each row learn to evaluate?",
    task=Mano(num_tests=4096, modulus=5, max_operations=3),
    metric="accuracy",
    fields=FIELDS | {"num_hidden_layers": 1, "sliding_window": 8},
    cells=(*CELLS, SMEARED),
    learning_rates=(2e-3, 4e-3),
    steps=5000,
    batch_size=64,
    tuning_steps=1500,
)
