# SPDX-License-Identifier: Apache-2.0
"""The costs of 1 to 4 loops of a token in vLLM: one after another in a vanilla loop, and in one pass of a PLT."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from measuring_plt.rows import LOOPED_ROWS

from ..plots import plot, plot_loops
from ..report import Section
from ..timing import EFFICIENCY, TOGETHER, at_point, by_loops

ROWS = {row.name for rows in LOOPED_ROWS.values() for row in rows}


def loops_section(times: dict[int, pd.DataFrame], context: int, headline: str) -> Section:
    """Latency and parallel efficiency by batch and loops.

    Args:
        times: milliseconds by batch, a line per round and a column for each of `ROWS`.
    """
    points = [
        by_loops(at_point(milliseconds, {"batch": batch, "context": context}, "ms per token"))
        for batch, milliseconds in times.items()
    ]
    table = pd.concat(points, ignore_index=True)
    notes = [
        "Parallel efficiency: time of L loops in turn over L times that of one pass; 1 / L if a pass takes as long as "
        "the loops in turn, about 1 if as long as one loop. It is the median of the rounds, as are ratios and ms.",
    ]
    figures = {"efficiency_by_loops": plot_efficiency(table, headline)}
    for batch, lines_of_batch in table.groupby("batch"):
        figure, _ = plot_loops(lines_of_batch.reset_index(drop=True), headline)
        figures[f"latency_by_loops_batch_{batch}"] = figure
    return Section("loops", "Decoding by loops", table, notes, figures)


def plot_efficiency(table: pd.DataFrame, headline: str) -> Figure:
    """Parallel efficiency against loops, with a line for each batch."""
    passes = table[table["kind"] == TOGETHER]
    passes = passes.assign(lines=[f"batch {batch}" for batch in passes["batch"]])
    figure, axes = plot(passes, headline, "Decoding, loops in one pass", "loops", f"{EFFICIENCY}, by round", "lines")
    loops = sorted(passes["loops"].unique())
    axes.plot(loops, [1 / number for number in loops], color="black", linewidth=0.8, linestyle=":", label="1 / loops")
    axes.set(ylabel="parallel efficiency (median, least to greatest)", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure
