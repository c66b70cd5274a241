# SPDX-License-Identifier: Apache-2.0
"""The greatest batch that fits a card, computed of weights and caches in bfloat16: nothing is measured."""

from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from transformers.configuration_utils import PreTrainedConfig

from measuring_plt.models import Setup, plain_bytes, row_config
from measuring_plt.rows import ROWS, Row
from training_plt.pretrain.presets import PRESETS

from ..plots import plot_fit
from ..report import Section, publish
from .cache_bytes import theory

MODELS = {
    "LoopCoder-V2 7B": PRESETS["loopcoder-v2-7b"],
    "1.2B": PRESETS["plt-1.2b"] | {"vocab_size": 128256},  # the paper does not say which vocabulary
}
CARDS = (24, 80, 141)  # GB, as they are sold
CONTEXTS = (4096, 32768, 131072)
NAMES = ("plain", "loop-2", "plt-2", "plt-3")
RESERVE = 0.1  # of a card, for activations and libraries; vLLM leaves as much
DTYPE = torch.bfloat16
NOTES = [
    "Computed, not measured. 0: the weights and one sequence do not fit.",
    f"A batch fits if weights and caches, both in bfloat16, take at most {1 - RESERVE:.0%} of the card; the rest is "
    "for activations and libraries. All sequences are as long as the context. A card of N GB has N * 10^9 bytes.",
    "LoopCoder-V2 is published for 32768 positions, and for two loops; its plain row has the same weights without "
    "gates. The 1.2B is the dense model of arXiv 2510.24824, with a vocabulary of 128256, which is not published.",
]


def weight_bytes(fields: dict, row: Row) -> int:
    return plain_bytes(Setup(fields, torch.device("cpu"), DTYPE, "sdpa"), row)


def greatest_batch(card: float, weights: int, sequence: int) -> int:
    """The number of sequences that fit beside the weights; all arguments in bytes."""
    return max(int(((1 - RESERVE) * card - weights) // sequence), 0)


def sequence_bytes(config: PreTrainedConfig, context: int) -> int:
    return theory(config, context, DTYPE.itemsize)


def count_bytes() -> pd.DataFrame:
    """Bytes of the weights, and of the cache of one sequence, for each model, row and context."""
    records = [
        (model, row, weight_bytes(fields, ROWS[row]), context, sequence_bytes(row_config(fields, ROWS[row]), context))
        for model, fields in MODELS.items()
        for row in NAMES
        for context in CONTEXTS
    ]
    return pd.DataFrame(records, columns=["model", "row", "weights", "context", "sequence"])


def by_row(table: pd.DataFrame, keys: list[str], value: str) -> pd.DataFrame:
    """A column for each row of `NAMES`, a line for each of the others."""
    wide = table.pivot(index=keys, columns="row", values=value).reset_index()
    return wide.sort_values("model", key=lambda names: names.map(list(MODELS).index), kind="stable")[[*keys, *NAMES]]


def fit_sections(counted: pd.DataFrame) -> list[Section]:
    cards = counted.merge(pd.DataFrame({"card, GB": CARDS}), how="cross")
    batches = [
        greatest_batch(1e9 * card, weights, sequence)
        for card, weights, sequence in zip(cards["card, GB"], cards["weights"], cards["sequence"], strict=True)
    ]
    fitting = by_row(cards.assign(batch=batches), ["model", "card, GB", "context"], "batch")
    sequences = by_row(counted.assign(GB=counted["sequence"] / 1e9), ["model", "context"], "GB")
    weights = by_row(counted.assign(GB=counted["weights"] / 1e9).drop_duplicates(["model", "row"]), ["model"], "GB")
    usable = {card: (1 - RESERVE) * card for card in CARDS}
    figures = {
        "memory_by_batch": plot_fit(
            counted, usable, f"Weights and caches in bfloat16, computed; dotted: {1 - RESERVE:.0%} of a card"
        )
    }
    return [
        Section("fit", "Greatest batch that fits", fitting, NOTES, figures),
        Section("weights", "Weights, GB", weights, []),
        Section("sequence", "Cache of one sequence, GB", sequences, []),
    ]


def fit(command: str, output: Path) -> None:
    """Write the tables and the plot, and print the tables."""
    setting = {"command": command, "method": "formulas only", "package": version("parallel-loop-transformer")}
    publish(output, "fit", "What fits a card, computed", setting, fit_sections(count_bytes()))
