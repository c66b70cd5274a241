# SPDX-License-Identifier: Apache-2.0
"""Mano (arXiv 2510.25741, section 6.2), reduced: the value of a prefix expression modulo a small prime."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .harness.definition import Experiment, GeneratedTask
from .harness.examples import NO_ANSWER, Examples
from .harness.sizes import ABLATION, FIELDS

OPERATORS = (operator.add, operator.sub, operator.mul)


@dataclass(frozen=True)
class Mano(GeneratedTask):
    """`<bos> <l> expression <ans> answer`, with l operations, from 1 to `max_operations`.

    Tokens are the numbers below the modulus, then + - *, <bos>, <ans>, and the values of l. Shorter sequences are
    filled with zeros. The test has no expression of one operation: there are too few to keep some from training.
    """

    modulus: int = 7
    max_operations: int = 6
    group: str = "operations"

    @property
    def vocab_size(self) -> int:
        return self.modulus + len(OPERATORS) + 2 + self.max_operations

    def generate(self, count: int, generator: torch.Generator) -> Examples:
        return self.write(torch.randint(1, self.max_operations + 1, (count,), generator=generator), generator)

    def test(self) -> Examples:
        examples = super().test()
        asked = examples.groups.max(dim=1).values >= 2
        return Examples(examples.input_ids[asked], examples.labels[asked], examples.groups[asked])

    def write(self, operations: Tensor, generator: torch.Generator) -> Examples:
        """An expression for each number of operations `[N]`; the only label of a sequence is its answer."""
        # one draw for all: drawing number by number would take most of the time
        draws = torch.rand(len(operations), 3 * self.max_operations + 1, generator=generator).tolist()
        sequences = [self.sequence(*pair) for pair in zip(operations.tolist(), draws, strict=True)]
        length = 2 * self.max_operations + 5
        input_ids = torch.tensor([sequence + [0] * (length - len(sequence)) for sequence in sequences])
        answers = torch.arange(length) == 2 * operations[:, None] + 4
        groups = operations[:, None].expand_as(input_ids)
        return Examples(input_ids, input_ids.where(answers, NO_ANSWER), groups)

    def sequence(self, operations: int, draws: list[float]) -> list[int]:
        expression = random_expression(operations, self.modulus, iter(draws))
        bos = self.modulus + len(OPERATORS)
        ans = bos + 1
        return [bos, ans + operations, *expression, ans, value(iter(expression), self.modulus)]


def random_expression(operations: int, modulus: int, draws: Iterator[float]) -> list[int]:
    """Prefix tokens of an expression; the first operation's sides share the others in every proportion."""
    if operations == 0:
        return [int(next(draws) * modulus)]
    left = int(next(draws) * operations)
    first = modulus + int(next(draws) * len(OPERATORS))
    sides = (random_expression(number, modulus, draws) for number in (left, operations - 1 - left))
    return [first, *(token for side in sides for token in side)]


def value(tokens: Iterator[int], modulus: int) -> int:
    """Of the prefix expression that the tokens begin with."""
    token = next(tokens)
    if token < modulus:
        return token
    left = value(tokens, modulus)
    return OPERATORS[token - modulus](left, value(tokens, modulus)) % modulus


EXPERIMENT = Experiment(
    name="mano",
    question="How many operations of modular arithmetic does each row learn to evaluate?",
    task=Mano(num_tests=4096),
    metric="accuracy",
    fields=FIELDS | {"num_hidden_layers": 2, "sliding_window": 8},
    cells=ABLATION,
    learning_rates=(1e-3, 2e-3, 4e-3),
    steps=10000,
    batch_size=64,
)
