# SPDX-License-Identifier: Apache-2.0
"""Times of rows that take turns, next to those of plain in the same round."""

from collections.abc import Callable
from statistics import median

import pandas as pd
from transformers.modeling_utils import PreTrainedModel

from measuring_plt.rows import ALL_ROWS, LOOPED_ROWS, PLAIN, Row
from measuring_plt.turns import take_turns

TOGETHER, IN_TURN = LOOPED_ROWS  # kinds
EFFICIENCY = "parallel efficiency"


def ratios_to_plain(times: pd.DataFrame) -> pd.DataFrame:
    """The ratio of each time of `take_turns` to that of plain in the same round."""
    return times.div(times[PLAIN.name], axis="index")


def at_point(times: pd.DataFrame, point: dict[str, int], label: str) -> pd.DataFrame:
    """A line per row, with the median, the extremes, and every round of its times, and of their ratios to plain.

    The ratio is the median of each round's: a slow round changes it less than a ratio of medians.

    Args:
        times: milliseconds, a line per round and a column per row, one of which is plain.
        point: what is varied, such as `{"batch": 4, "context": 512}`.
        label: the name of the column of times.
    """
    ratios = ratios_to_plain(times)
    names = {"row": list(times), "passes": [ALL_ROWS[name].num_passes for name in times]}
    figures = {label: times.median(), "min": times.min(), "max": times.max(), "ratio to plain": ratios.median()}
    by_round = {label: times, "ratio to plain": ratios}
    lists = {f"{name}, by round": values.T.to_numpy().tolist() for name, values in by_round.items()}
    return pd.DataFrame(names | point | figures | lists, index=times.columns)


def by_loops(timed: pd.DataFrame) -> pd.DataFrame:
    """A line for each kind and number of loops, of the lines of one point; one loop, plain, stands under both kinds.

    Parallel efficiency: for each round, the time of L loops in turn, as the vanilla loop runs them, over L times that
    of L together; and the median of the rounds.
    """
    rounds = timed.set_index("row")["ms per token, by round"].map(pd.Series)
    lines, efficiency = [], []
    for kind, rows in LOOPED_ROWS.items():
        for row, in_turn in zip(rows, LOOPED_ROWS[IN_TURN], strict=True):
            lines.append({"kind": kind, "loops": row.num_loops, "row": row.name})
            found = rounds[in_turn.name] / (row.num_loops * rounds[row.name])
            efficiency.append(found.tolist() if kind == TOGETHER else None)
    table = pd.DataFrame(lines).merge(timed, on="row").drop(columns=["row", "passes"])
    medians = [None if found is None else median(found) for found in efficiency]
    return table.assign(**{EFFICIENCY: medians, f"{EFFICIENCY}, by round": efficiency})


def measure_rows(
    models: dict[Row, PreTrainedModel],
    points: list[dict[str, int]],
    make_sample: Callable[..., Callable[[], None]],
    rounds: int,
    label: str,
    per_sample: int = 1,
) -> pd.DataFrame:
    """The lines of all models at each point, see `at_point`; one row is plain.

    Args:
        make_sample: makes what is timed of a model and a point; samples are in memory together, for one point.
    """

    def measure_point(point: dict[str, int]) -> pd.DataFrame:
        samples = {row.name: make_sample(model, **point) for row, model in models.items()}
        description = ", ".join([label, *(f"{name} {value}" for name, value in point.items())])
        return at_point(pd.DataFrame(take_turns(samples, rounds, description, per_sample)), point, label)

    return pd.concat([measure_point(point) for point in points], ignore_index=True)
