# SPDX-License-Identifier: Apache-2.0
"""How far a PLT is from its source before any training: next-token distributions and loss on a text."""

import argparse
import inspect
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from ..plan.plan import Plan
from ..reading.checkpoint import Checkpoint
from .verify import plt_logits, whole_source_logits

NUM_ROWS, LENGTH = 2, 256  # of the tokens that are measured


@dataclass(frozen=True)
class Distance:
    """Divergence and losses in nats per token, on `num_tokens` tokens of `text`."""

    text: str
    origin: str  # from which the distance is
    num_tokens: int
    divergence: float
    source_loss: float
    plt_loss: float
    largest_difference: float  # of logits

    def __str__(self) -> str:
        return (
            f"Before any training, on {self.num_tokens} tokens of {self.text}: KL({self.origin} || PLT) "
            f"{self.divergence:.2e} nats per token; loss {self.source_loss:.4f} ({self.origin}), "
            f"{self.plt_loss:.4f} (PLT); largest difference of logits {self.largest_difference:.1e}."
        )


def read_text(file: Path | None) -> tuple[str, str]:
    """The name of a text, and the text; without a file, the source of a module of Python's standard library.

    Raises:
        ValueError: the file is not UTF-8.
    """
    if file is None:
        return "Python's argparse.py", inspect.getsource(argparse)
    try:
        return file.name, file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be text in UTF-8: {error}") from error


def measure(exact: Plan, plan: Plan, written: Checkpoint, name: str, text: str) -> Distance:
    """The distance between the PLT and its source, float32, one layer in memory at a time.

    Args:
        exact: the exact re-expression of the source.
        plan: the PLT that was made from it.
        written: the folder with the weights of both, and the tokenizer.
        name: of the text.

    Raises:
        ValueError: the text has fewer than two tokens or unknown ones, or the PLT's logits are not finite.
    """
    if has_tokenizer(written.folder):
        rows = token_rows(written.folder, text, plan.config.vocab_size)
    else:
        name = "random tokens (there is no tokenizer)"
        rows = torch.randint(plan.config.vocab_size, (NUM_ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    origin, source = origin_logits(exact, written, rows)
    plt = plt_logits(plan.config, written, rows)
    if not plt.isfinite().all():
        raise ValueError("The PLT gives logits that are not finite.")
    return Distance(
        text=name,
        origin=origin,
        num_tokens=rows.numel(),
        divergence=mean_divergence(source, plt),
        source_loss=next_token_loss(source, rows),
        plt_loss=next_token_loss(plt, rows),
        largest_difference=(source - plt).abs().max().item(),
    )


def origin_logits(exact: Plan, written: Checkpoint, rows: Tensor) -> tuple[str, Tensor]:
    """From what the distance is measured, and its logits; where layers were left out, that is the whole source."""
    name = exact.source.reference_class
    if exact.cut.layers is None:
        return "source", plt_logits(exact.config, written, rows)
    if name is None:  # nothing here can run the others
        return "kept layers", plt_logits(exact.config, written, rows)
    return "source", whole_source_logits(exact, getattr(transformers, name), rows)


def has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").is_file()


def token_rows(folder: Path, text: str, vocab_size: int) -> Tensor:
    """The first tokens of the text: at most two rows of at most 256."""
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[0, : NUM_ROWS * LENGTH]
    if len(ids) < 2:
        raise ValueError(f"The text to measure on must have at least 2 tokens, got {len(ids)}.")
    if ids.max() >= vocab_size:
        raise ValueError(f"The tokenizer must give ids below the `vocab_size` of {vocab_size}, got {ids.max()}.")
    num_rows = NUM_ROWS if len(ids) == NUM_ROWS * LENGTH else 1
    return ids.view(num_rows, -1)


def mean_divergence(logits: Tensor, other_logits: Tensor) -> float:
    """Mean KL divergence per token between two sets of logits `[B, T, V]`, a row at a time."""
    total = 0.0
    for row, other in zip(logits, other_logits, strict=True):
        log, other_log = row.log_softmax(dim=-1), other.log_softmax(dim=-1)
        total += (log.exp() * (log - other_log)).sum().item()
    return total / logits.shape[:-1].numel()


def next_token_loss(logits: Tensor, rows: Tensor) -> float:
    return cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten()).item()
