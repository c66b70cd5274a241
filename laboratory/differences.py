# SPDX-License-Identifier: Apache-2.0
"""Differences between runs of one seed, with their intervals (paired t).

`scores` has a line per seed and a column per name, of a cell or a training.
"""

import pandas as pd
from scipy.stats import t

from .report import markdown

CONFIDENCE = 0.95
LINK = "[Differences of all pairs](differences.md)."
INTERVAL = f"half of its {CONFIDENCE:.0%} interval (paired t)"


def difference(scores: pd.DataFrame, name: str, base: str) -> str | None:
    """The mean of `name` minus `base` over the seeds of both, `±` half of its interval; None below two such seeds."""
    pairs = (scores[name] - scores[base]).dropna()
    if name == base or len(pairs) < 2:
        return None
    half = t.ppf((1 + CONFIDENCE) / 2, len(pairs) - 1) * pairs.sem()
    return f"{pairs.mean():+.3f} ± {half:.3f}"


def matrix(scores: pd.DataFrame, kind: str) -> pd.DataFrame:
    """A line and a column per name: the line's minus the column's. The names stand in the column `kind`."""
    lines = [{kind: name} | {base: difference(scores, name, base) or "" for base in scores} for name in scores]
    return pd.DataFrame(lines)


def all_differences(title: str, value: str, kind: str, scores: pd.DataFrame) -> str:
    """A page with every pair of names, of which a table shows but few."""
    parts = [
        f"# Differences of {title}",
        f"{value} of the line minus that of the column: the mean of the differences between runs of one seed, and "
        f"{INTERVAL}.",
        markdown(matrix(scores, kind)),
    ]
    return "\n\n".join(parts) + "\n"
