# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing: all rows take turns within every round, so that a busy machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm

from benchmarks_plt.rows import PLAIN, Row

WARMUP_ROUNDS = 1  # in which a sample decodes several tokens: a compiled step is recorded in its second call


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one row in each round, and in each round the ratio to the plain row's."""

    milliseconds: list[float]
    ratios: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def ratio(self) -> float:
        """The median of the ratios, which a slow round changes less than a ratio of medians."""
        return statistics.median(self.ratios)

    def record(self, label: str) -> dict:
        """For a table and, the lists, for the file behind it."""
        return {
            label: self.median,
            "min": min(self.milliseconds),
            "max": max(self.milliseconds),
            "ratio to plain": self.ratio,
            f"{label}, by round": self.milliseconds,
            "ratio to plain, by round": self.ratios,
        }


@dataclass(frozen=True)
class Timed:
    """A row's timing at one point of what is varied, such as `{"batch": 4, "context": 512}`."""

    row: Row
    point: dict[str, int]
    timing: Timing

    def record(self, label: str) -> dict:
        return {"row": self.row.name, "passes": self.row.num_passes} | self.point | self.timing.record(label)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_interleaved(
    samples: dict[str, Callable[[], None]],
    rounds: int,
    device: torch.device,
    description: str,
    per_sample: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time every sample once a round, after `WARMUP_ROUNDS` that do not count.

    Args:
        samples: by name of the row; one of them is plain. Each round starts with the next of them.
        description: for the progress bar.
        per_sample: what a sample does so many times; the times are per one.
        clock: seconds.
    """
    names = list(samples)
    milliseconds: dict[str, list[float]] = {name: [] for name in names}
    for number in tqdm(range(WARMUP_ROUNDS + rounds), desc=description, unit="round"):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            synchronize(device)
            start = clock()
            samples[name]()
            synchronize(device)
            milliseconds[name].append(1000 * (clock() - start) / per_sample)
    counted = {name: values[WARMUP_ROUNDS:] for name, values in milliseconds.items()}
    plain = counted[PLAIN.name]
    return {
        name: Timing(values, [own / other for own, other in zip(values, plain, strict=True)])
        for name, values in counted.items()
    }
