# SPDX-License-Identifier: Apache-2.0
"""Times of rows that take turns, next to those of plain in the same round."""

from collections.abc import Callable

import pandas as pd
from transformers.modeling_utils import PreTrainedModel

from measuring_plt.rows import PLAIN, Row
from measuring_plt.turns import take_turns


def ratios_to_plain(times: pd.DataFrame) -> pd.DataFrame:
    """The ratio of each time of `take_turns` to that of plain in the same round."""
    return times.div(times[PLAIN.name], axis="index")


def parallel_efficiency(in_turn: pd.Series, together: pd.Series, num_loops: int) -> pd.Series:
    """By rounds: the time of L loops in turn, as the vanilla loop runs them, over L times that of L together."""
    return in_turn / (num_loops * together)


def measure_rows(
    models: dict[Row, PreTrainedModel],
    points: list[dict[str, int]],
    make_sample: Callable[..., Callable[[], None]],
    rounds: int,
    label: str,
    per_sample: int = 1,
) -> pd.DataFrame:
    """A line per model at each point of what is varied, such as `{"batch": 4, "context": 512}`; one row is plain.

    The ratio is the median of each round's: a slow round changes it less than a ratio of medians.

    Args:
        make_sample: makes what is timed of a model and a point; samples are in memory together, for one point.
        label: of the column of times.
    """

    def measure_point(point: dict[str, int]) -> pd.DataFrame:
        samples = {row.name: make_sample(model, **point) for row, model in models.items()}
        description = ", ".join([label, *(f"{name} {value}" for name, value in point.items())])
        times = pd.DataFrame(take_turns(samples, rounds, description, per_sample))
        ratios = ratios_to_plain(times)
        names = {"row": list(samples), "passes": [row.num_passes for row in models]}
        figures = {label: times.median(), "min": times.min(), "max": times.max(), "ratio to plain": ratios.median()}
        by_round = {label: times, "ratio to plain": ratios}
        lists = {f"{name}, by round": values.T.to_numpy().tolist() for name, values in by_round.items()}
        return pd.DataFrame(names | point | figures | lists, index=times.columns)

    return pd.concat([measure_point(point) for point in points], ignore_index=True)
