# SPDX-License-Identifier: Apache-2.0
"""The runs that an experiment needs, in order."""

import math
from collections.abc import Iterator

from .definition import TUNING_SEED, Cell, Experiment, Run
from .store import Store


def select_cells(experiment: Experiment, row: str | None) -> list[Cell]:
    """The cells of a row, or all.

    Raises:
        ValueError: the experiment has no such row.
    """
    cells = [cell for cell in experiment.cells if row in (None, cell.label)]
    if not cells:
        rows = dict.fromkeys(cell.label for cell in experiment.cells)
        raise ValueError(f"`--only` must be a row of {experiment.name}, one of {', '.join(rows)}, got {row!r}.")
    return cells


def tuning_runs(experiment: Experiment, cell: Cell) -> list[Run]:
    """The runs that choose the learning rate of a cell."""
    tuned = next(other for other in experiment.cells if other.tuned_as == cell.tuned_as)
    return [Run(experiment, tuned, rate, TUNING_SEED) for rate in experiment.learning_rates]


def best_learning_rate(experiment: Experiment, cell: Cell, store: Store) -> float | None:
    """The one with the lowest cross entropy when tuned; None until all have been tried."""
    runs = tuning_runs(experiment, cell)
    results = [result for result in map(store.read, runs) if result is not None]
    if len(results) < len(runs):
        return None
    return min(results, key=mean_bits)["learning_rate"]


def mean_bits(result: dict) -> float:
    """Per answer; infinite where training has diverged."""
    count = sum(score["count"] for score in result["scores"])
    bits = sum(score["bits"] * score["count"] for score in result["scores"]) / count
    return bits if math.isfinite(bits) else math.inf


def missing_runs(experiment: Experiment, cells: list[Cell], seeds: list[int], store: Store) -> Iterator[Run]:
    """The runs that can start now: a cell's seeds wait for its learning rate.

    All cells with one seed come before all with the next, so that a stopped experiment has whole tables.
    """
    tuning: dict[Run, None] = {}  # in order, each once
    for seed in seeds:
        for cell in cells:
            rate = best_learning_rate(experiment, cell, store)
            if rate is not None:
                run = Run(experiment, cell, rate, seed)
                if store.read(run) is None:
                    yield run
                continue
            missing = [run for run in tuning_runs(experiment, cell) if run not in tuning and store.read(run) is None]
            tuning |= dict.fromkeys(missing)
            yield from missing
