# SPDX-License-Identifier: Apache-2.0
"""Tables and a plot of an experiment's results."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from benchmarks_plt.report import markdown

from .definition import Experiment
from .store import Store

BASE, BOUND = "plain", "deep-2"  # the rows that the gap is measured between


def write_report(experiment: Experiment, store: Store) -> None:
    """`table.md` and `plot.png` next to the results; nothing while there are none."""
    results = [result for result in store.results() if not result["is_tuning"]]
    if not results:
        return
    points = pd.DataFrame([point for result in results for point in points_of(result, experiment.metric)])
    order = {cell.name: number for number, cell in enumerate(experiment.cells)}
    points = points.sort_values(["layers", "cell"], key=lambda column: column.map(lambda v: order.get(v, v)))
    (store.folder / "table.md").write_text(report(experiment, points), encoding="utf-8")
    plot(experiment, points).savefig(store.folder / "plot.png", dpi=100)


def points_of(result: dict, metric: str) -> list[dict]:
    """A line for each group of a run."""
    names = ("cell", "row", "layers", "seed", "learning_rate", "parameters", "steps", "seconds", "commit")
    common = {name: result[name] for name in names}
    return [
        common | {"group": score["group"], "count": score["count"], "score": score[metric]}
        for score in result["scores"]
    ]


def overall(points: pd.DataFrame) -> pd.DataFrame:
    """A line per run: its score over all answers."""
    weighted = points.assign(score=points["score"] * points["count"])
    names = [name for name in points if name not in ("group", "count", "score")]
    sums = weighted.groupby(names, sort=False)[["score", "count"]].sum()
    return (sums["score"] / sums["count"]).rename("score").reset_index()


def summary(points: pd.DataFrame) -> pd.DataFrame:
    """A line per cell: mean, least and greatest score of its seeds, and the gap that it closes."""
    cells = overall(points).groupby(["layers", "cell", "row"], sort=False)
    table = cells["score"].agg(["mean", "min", "max"]).reset_index()
    table["% gap"] = [gap(table, *line) for line in zip(table["layers"], table["mean"], strict=True)]
    for name in ("learning_rate", "parameters", "seconds"):
        table[name.replace("_", " ")] = cells[name].mean().to_numpy()
    table["parameters"] = table["parameters"].astype(int)
    table["seeds"] = cells["seed"].nunique().to_numpy()
    return table.drop(columns="row")


def gap(table: pd.DataFrame, layers: int, mean: float) -> float:
    """How far a mean is on the way from plain, 0, to plain of twice the layers, 100 (arXiv 2502.17416)."""
    at = table[table["layers"] == layers].set_index("row")["mean"]
    if not {BASE, BOUND} <= set(at.index) or at[BOUND] == at[BASE]:
        return float("nan")
    return 100 * (mean - at[BASE]) / (at[BOUND] - at[BASE])


def by_group(experiment: Experiment, points: pd.DataFrame) -> pd.DataFrame:
    """Mean scores of the seeds, a column per group."""
    table = points.pivot_table("score", ["layers", "cell"], "group", "mean", sort=False)
    table = table[sorted(table)]
    return table.rename(columns=lambda group: f"{experiment.task.group} {group}").reset_index()


def report(experiment: Experiment, points: pd.DataFrame) -> str:
    seeds = ", ".join(map(str, sorted(points["seed"].unique())))
    parts = [
        f"# {experiment.name}",
        experiment.question,
        f"`python -m training_plt.experiment {experiment.name}`: {experiment.steps} steps of {experiment.batch_size} "
        f"sequences; {experiment.metric} on the test; with seed {seeds}; by commit "
        f"{', '.join(sorted({commit[:10] for commit in points['commit']}))}. Each row's learning rate is the best of "
        f"{', '.join(f'{rate:g}' for rate in experiment.learning_rates)} on a seed that is not shown.",
        markdown(summary(points)),
    ]
    if points["group"].nunique() > 1:
        parts += [f"Mean {experiment.metric} by {experiment.task.group}:", markdown(by_group(experiment, points))]
    return "\n\n".join([*parts, "![plot](plot.png)"]) + "\n"


def plot(experiment: Experiment, points: pd.DataFrame) -> Figure:
    """Means of the seeds, with bars from the least to the greatest; a panel for each number of layers."""
    if points["group"].nunique() == 1:
        grid = sns.catplot(
            overall(points), kind="point", x="score", y="cell", col="layers", errorbar=("pi", 100), linestyle="none"
        )
        grid.set_axis_labels(experiment.metric, "")
        return grid.figure
    grid = sns.relplot(
        points,
        kind="line",
        x="group",
        y="score",
        hue="cell",
        style="cell",
        col="layers",
        errorbar=("pi", 100),
        err_style="bars",
        markers=True,
        dashes=False,
        palette="tab20",
    )
    grid.set_axis_labels(experiment.task.group, experiment.metric)
    grid.set_titles("layers: {col_name}")
    if points["group"].max() > 8:
        grid.set(xscale="log")
    return grid.figure
