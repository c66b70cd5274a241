# SPDX-License-Identifier: Apache-2.0
"""An experiment: a task, and the models that are trained on it."""

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch

from configuration_plt import PLTConfig
from measuring_plt.models import row_config
from measuring_plt.rows import ALL_ROWS

from .examples import Examples

SHORT = {
    "sliding_window": "window",
    "num_hidden_layers": "layers",
    "num_experts": "experts",
    "num_prelude_layers": "prelude",
    "num_coda_layers": "coda",
}
UNNAMED = ("num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "router_aux_loss_coef")
TUNING_SEED = 0  # of runs that choose a learning rate; no table shows them
TEST_SEED, VALIDATION_SEED = 123_456_789, 987_654_321  # far from the seeds of runs
SMEAR = "smear"


class Task(Protocol):
    """Sequences to train on and to test on.

    Attributes:
        vocab_size: of the model.
        group: what the number of a group means; it is the horizontal axis of the plot.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def group(self) -> str: ...

    def train(self, count: int, seed: int) -> Examples:
        """Sequences to train on, none of which is in the test; at most `count`."""

    def test(self) -> Examples:
        """The same sequences for all runs."""

    def validation(self) -> Examples:
        """Other sequences, to choose learning rates on.

        Raises:
            NotImplementedError: there are none.
        """

    def describe(self) -> dict[str, Any]:
        """Everything that decides what the sequences are, for JSON."""


@dataclass(frozen=True)
class GeneratedTask:
    """A task whose sequences are drawn at random; a subclass adds `vocab_size`, `group` and `generate`."""

    num_tests: int = 1024  # sequences

    def generate(self, count: int, generator: torch.Generator) -> Examples:
        raise NotImplementedError

    def train(self, count: int, seed: int) -> Examples:
        return self.generate(count, torch.Generator().manual_seed(seed)).without(self.test())

    def test(self) -> Examples:
        return self.generate(self.num_tests, torch.Generator().manual_seed(TEST_SEED))

    def validation(self) -> Examples:
        """As many other sequences, to choose learning rates on."""
        return self.generate(self.num_tests, torch.Generator().manual_seed(VALIDATION_SEED)).without(self.test())

    def describe(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Cell:
    """A model of an experiment: a row of the ablation, and what it has of its own.

    Attributes:
        row: a name in `ALL_ROWS`.
        fields: of PLTConfig, over those of the experiment.
        frozen: parameters with this in their names keep the values they start with.
        smears: whether each token's embedding is mixed with the one before, see `train.smear`: a control.
        longer: trained for so many times the steps of the other cells.
    """

    row: str
    fields: dict[str, Any] = field(default_factory=dict, hash=False)
    frozen: str = ""
    smears: bool = False
    longer: int = 1

    @property
    def label(self) -> str:
        """The row with its control, as in `smear` (of plain) and `smear + plt-2`."""
        if not self.smears:
            return self.row
        return SMEAR if self.row == "plain" else f"{SMEAR} + {self.row}"

    @property
    def name(self) -> str:
        """As in `plt-2, window 8, layers 1`."""
        named = {name: value for name, value in self.fields.items() if name not in UNNAMED}
        parts = [f"{SHORT.get(name, name)} {value}" for name, value in named.items()]
        parts += [f"{self.frozen} frozen"] if self.frozen else []
        parts += [f"{self.longer} times the steps"] if self.longer > 1 else []
        return ", ".join([self.label, *parts])

    @property
    def tuned_as(self) -> tuple[str, dict[str, Any]]:
        """Cells for which this is equal share a learning rate: they differ in window, steps, or what is frozen."""
        return self.label, {name: value for name, value in self.fields.items() if name != "sliding_window"}


@dataclass(frozen=True)
class Experiment:
    """A task and the cells that are trained on it, all on as many tokens and with the same optimizer.

    Attributes:
        question: what it asks, in one sentence.
        metric: the column of a score that tables show: `accuracy`, or `bits` per answer.
        fields: of PLTConfig, for all cells.
        cells: the first one of each `tuned_as` is the one that is tuned.
        learning_rates: the grid that each row is tuned on.
        tuning_steps: of the runs that are tuned on; as `steps` if None.
        validates: whether rates are chosen on sequences of their own; otherwise on those of the test.
    """

    name: str
    question: str
    task: Task
    metric: str
    fields: dict[str, Any] = field(hash=False)
    cells: tuple[Cell, ...]
    learning_rates: tuple[float, ...]
    steps: int
    batch_size: int
    tuning_steps: int | None = None
    validates: bool = False


@dataclass(frozen=True)
class Run:
    """One training of one cell."""

    experiment: Experiment
    cell: Cell
    learning_rate: float
    seed: int

    @property
    def is_tuning(self) -> bool:
        return self.seed == TUNING_SEED

    @property
    def steps(self) -> int:
        if self.is_tuning:
            return self.experiment.tuning_steps or self.experiment.steps
        return self.experiment.steps * self.cell.longer

    @property
    def asks_validation(self) -> bool:
        """Whether it is scored on sequences that no table shows."""
        return self.is_tuning and self.experiment.validates

    @property
    def name(self) -> str:
        """The name of the run's file, such as `tune_plt-2_window-8_lr-0.002_seed-0`."""
        cell = re.sub(r"[^\w.-]+", "-", self.cell.name.replace(", ", "_"))
        return f"{'tune_' * self.is_tuning}{cell}_lr-{self.learning_rate:g}_seed-{self.seed}"

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of PLTConfig that the row does not set."""
        return self.experiment.fields | {"vocab_size": self.experiment.task.vocab_size} | self.cell.fields

    def config(self) -> PLTConfig:
        config = row_config(self.fields, ALL_ROWS[self.cell.row])
        assert isinstance(config, PLTConfig)  # no cell is of the row of Llama
        return config

    def settings(self) -> dict[str, Any]:
        """Everything that decides its result but the machine and the code, for JSON."""
        # only where they are set: older results do not have them
        further = {"smears": self.cell.smears, "asks_validation": self.asks_validation}
        return {name: value for name, value in further.items() if value} | {
            "experiment": self.experiment.name,
            "cell": self.cell.name,
            "row": self.cell.label,
            "layers": self.fields["num_hidden_layers"],
            "is_tuning": self.is_tuning,
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "steps": self.steps,
            "batch_size": self.experiment.batch_size,
            "frozen": self.cell.frozen,
            "task": self.experiment.task.describe(),
            "config": self.config().to_diff_dict(),
        }
