# SPDX-License-Identifier: Apache-2.0
"""Python source, byte by byte: bits per byte of packages that are not in the training text.

T bytes.
"""

from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .harness.definition import Cell, Experiment
from .harness.examples import Examples
from .harness.python_text import BYTES_OF_PACKAGE, facts, read_documents
from .harness.sizes import CELLS, FIELDS, SMEARED

START = 256  # the token before a document, after the 256 bytes


@dataclass(frozen=True)
class Language:
    """Blocks of T bytes from Python files of the standard library and of packages, see `python_text`."""

    length: int = 128
    num_tests: int = 1000  # blocks, spread evenly over the held-out text
    group: str = "all"
    vocab_size: int = START + 1

    def train(self, count: int, seed: int) -> Examples:
        """Blocks from random places of the training text."""
        text = tokens_of("train")
        starts = torch.randint(len(text) - self.length, (count, 1), generator=torch.Generator().manual_seed(seed))
        return as_blocks(text[starts + torch.arange(self.length)])

    def test(self) -> Examples:
        blocks, step = self.held_out()
        return as_blocks(blocks[::step][: self.num_tests])

    def validation(self) -> Examples:
        """As many blocks between those of the test."""
        blocks, step = self.held_out()
        return as_blocks(blocks[step // 2 :: step][: self.num_tests])

    def held_out(self) -> tuple[Tensor, int]:
        """All blocks of the held-out text, and how many there are for each of the test."""
        text = tokens_of("test")
        blocks = text[: len(text) // self.length * self.length].view(-1, self.length)
        return blocks, max(len(blocks) // self.num_tests, 1)

    def describe(self) -> dict[str, Any]:
        return asdict(self) | {"bytes_of_package": BYTES_OF_PACKAGE} | facts()


def as_blocks(input_ids: Tensor) -> Examples:
    return Examples(input_ids, input_ids, torch.zeros_like(input_ids))


@cache
def tokens_of(split: str) -> Tensor:
    """All documents of a split, one after another, each after `START`: `[T]`."""
    documents = read_documents()[split]
    return torch.tensor([*chain.from_iterable((START, *document) for document in documents)], dtype=torch.int16)


EXPERIMENT = Experiment(
    name="language",
    question="How well does each row predict Python source, byte by byte?",
    task=Language(),
    metric="bits",
    fields=FIELDS | {"num_hidden_layers": 2, "sliding_window": 16},
    cells=(*CELLS, SMEARED, Cell("plain", longer=2)),
    learning_rates=(2e-3, 4e-3, 8e-3),
    steps=2000,
    batch_size=8,
    tuning_steps=500,
)
