# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing: all rows take turns within every round, so that a busy machine slows all of them alike."""

from collections.abc import Callable

import pandas as pd
from torch.utils.benchmark import timer
from tqdm.auto import tqdm

from .models import SharedWeights
from .rows import PLAIN, Row

WARMUP_ROUNDS = 1  # in which a sample decodes several tokens: a compiled step is recorded in its second call


def time_interleaved(
    samples: dict[str, Callable[[], None]],
    rounds: int,
    description: str,
    per_sample: int = 1,
    clock: Callable[[], float] = timer,
) -> pd.DataFrame:
    """Milliseconds of every sample, a line per round and a column per row; `WARMUP_ROUNDS` more do not count.

    Args:
        samples: by name of the row. Each round starts with the next of them.
        description: for the progress bar.
        per_sample: how often a sample does what is timed; the times are of one.
        clock: seconds; `torch.utils.benchmark.timer` first waits for the accelerator, if there is one.
    """
    names = list(samples)
    lines = []
    for number in tqdm(range(WARMUP_ROUNDS + rounds), desc=description, unit="round"):
        first = number % len(names)
        line = {}
        for name in names[first:] + names[:first]:
            start = clock()
            samples[name]()
            line[name] = 1000 * (clock() - start) / per_sample
        lines.append(line)
    return pd.DataFrame(lines, columns=names).iloc[WARMUP_ROUNDS:]


def ratios_to_plain(times: pd.DataFrame) -> pd.DataFrame:
    """Of the times of `time_interleaved`, each to that of plain in the same round."""
    return times.div(times[PLAIN.name], axis="index")


def measure_rows(
    weights: SharedWeights,
    rows: list[Row],
    points: list[dict[str, int]],
    make_sample: Callable[..., Callable[[], None]],
    rounds: int,
    label: str,
    per_sample: int = 1,
) -> pd.DataFrame:
    """A line per row at each point of what is varied, such as `{"batch": 4, "context": 512}`; one row is plain.

    The ratio is the median of each round's: a slow round changes it less than a ratio of medians.

    Args:
        make_sample: makes what is timed of a model and a point; samples are in memory together, for one point.
        label: of the column of times.
    """
    models = {row.name: weights.build(row) for row in rows}

    def measure_point(point: dict[str, int]) -> pd.DataFrame:
        samples = {name: make_sample(model, **point) for name, model in models.items()}
        description = ", ".join([label, *(f"{name} {value}" for name, value in point.items())])
        times = time_interleaved(samples, rounds, description, per_sample)
        ratios = ratios_to_plain(times)
        names = {"row": list(models), "passes": [row.num_passes for row in rows]}
        figures = {label: times.median(), "min": times.min(), "max": times.max(), "ratio to plain": ratios.median()}
        by_round = {label: times, "ratio to plain": ratios}
        lists = {f"{name}, by round": values.T.to_numpy().tolist() for name, values in by_round.items()}
        return pd.DataFrame(names | point | figures | lists, index=times.columns)

    return pd.concat([measure_point(point) for point in points], ignore_index=True)
