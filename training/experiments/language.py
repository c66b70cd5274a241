# SPDX-License-Identifier: Apache-2.0
"""Python source, byte by byte: bits per byte of packages that are not in the training text.

T bytes.
"""

import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import distributions
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..texts import python_files
from .harness.definition import Experiment
from .harness.examples import Examples
from .harness.sizes import ABLATION, FIELDS

START = 256  # the token before a document, after the 256 bytes
HELD_OUT = 8  # one package in so many


@dataclass(frozen=True)
class Language:
    """Blocks of T bytes from Python files of the standard library and of installed packages."""

    length: int = 128
    bytes_of_package: int = 500_000  # at most, so that no package is most of the text
    num_tests: int = 1000  # blocks, spread evenly over the held-out text
    group: str = "all"
    vocab_size: int = START + 1

    def train(self, count: int, seed: int) -> Examples:
        """Blocks from random places of the training text."""
        text = tokens_of("train", self.bytes_of_package)
        starts = torch.randint(len(text) - self.length, (count, 1), generator=torch.Generator().manual_seed(seed))
        return as_blocks(text[starts + torch.arange(self.length)])

    def test(self) -> Examples:
        text = tokens_of("test", self.bytes_of_package)
        blocks = text[: len(text) // self.length * self.length].view(-1, self.length)
        return as_blocks(blocks[:: max(len(blocks) // self.num_tests, 1)][: self.num_tests])

    def describe(self) -> dict[str, Any]:
        return asdict(self) | facts_of(self.bytes_of_package)


def as_blocks(input_ids: Tensor) -> Examples:
    return Examples(input_ids, input_ids, torch.zeros_like(input_ids))


@cache  # every look for missing runs asks
def facts_of(bytes_of_package: int) -> dict[str, Any]:
    """What the text is made of, for JSON."""
    splits, packages = read_splits(bytes_of_package)
    return {
        "packages": packages,
        "bytes": {name: sum(map(len, documents)) for name, documents in splits.items()},
        "sha256": {name: hashlib.sha256(b"\0".join(documents)).hexdigest() for name, documents in splits.items()},
    }


@cache
def tokens_of(split: str, bytes_of_package: int) -> Tensor:
    """All documents of a split, one after another, each after `START`: `[T]`."""
    documents = read_splits(bytes_of_package)[0][split]
    return torch.tensor([*chain.from_iterable((START, *document) for document in documents)], dtype=torch.int16)


@cache
def read_splits(bytes_of_package: int) -> tuple[dict[str, list[bytes]], dict[str, dict[str, str]]]:
    """By split, its documents; and by split, the packages that they come from with their versions."""
    documents: dict[str, list[bytes]] = {"train": [], "test": []}
    packages: dict[str, dict[str, str]] = {"train": {}, "test": {}}
    seen: set[bytes] = set()  # lines; of the test too, so that it repeats neither the training text nor itself
    for split, name, version, files in sorted(read_packages(), key=lambda package: (package[0] == "test", package[1])):
        kept = list(capped(new_documents(files, seen), bytes_of_package))
        documents[split] += kept
        packages[split] |= {name: version} if kept else {}
    return documents, packages


def read_packages() -> Iterator[tuple[str, str, str, list[Path]]]:
    """Split, name, version and Python files of every installed package, and of the standard library, to train on."""
    library = Path(sysconfig.get_paths()["stdlib"])
    yield "train", "python", sys.version.split()[0], python_files(library.rglob("*.py"), library)
    for package in distributions():
        if package.name == "parallel-loop-transformer":
            continue  # it changes with every commit
        root = Path(str(package.locate_file("")))
        files = [Path(str(file.locate())) for file in package.files or [] if file.suffix == ".py"]
        yield split_of(package.name), package.name, package.version, python_files(files, root)


def split_of(package: str) -> str:
    """One package in `HELD_OUT` is held out, by its name, whatever else is installed."""
    return "test" if hashlib.sha256(package.lower().encode()).digest()[0] % HELD_OUT == 0 else "train"


def new_documents(files: Iterable[Path], seen: set[bytes]) -> Iterator[bytes]:
    """The files most of whose lines no earlier file had, which leaves out copies and what is nearly one."""
    for file in files:
        text = file.read_bytes()
        lines = {line.strip() for line in text.splitlines() if line.strip()}
        is_new = len(lines - seen) > len(lines) / 2
        seen |= lines
        if is_new:
            yield text


def capped(documents: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The first documents that have so many bytes together; the last one is cut."""
    for document in documents:
        if size <= 0:
            return
        yield document[:size]
        size -= len(document)


EXPERIMENT = Experiment(
    name="language",
    question="How well does each row predict Python source, byte by byte?",
    task=Language(),
    metric="bits",
    fields=FIELDS | {"num_hidden_layers": 2, "sliding_window": 16},
    cells=ABLATION,
    learning_rates=(2e-3, 4e-3, 8e-3),
    steps=2000,
    batch_size=8,
    tuning_steps=500,
)
