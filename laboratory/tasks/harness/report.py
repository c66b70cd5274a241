# SPDX-License-Identifier: Apache-2.0
"""Tables and a plot of an experiment's results."""

import math

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ...differences import INTERVAL, LINK, all_differences, difference
from ...report import markdown, write_study
from .definition import Experiment
from .store import Store

BASE, BOUND, SUBJECT = "plain", "deep-2", "plt-2"  # plain, plain of twice the layers, and what is studied


def write_report(experiment: Experiment, store: Store) -> None:
    """`table.md`, `differences.md` and `plot.png` next to the results; nothing while there are none."""
    results = [result for result in store.results() if not result["is_tuning"]]
    if not results:
        return
    points = pd.DataFrame([point for result in results for point in points_of(result, experiment.metric)])
    order = {cell.name: number for number, cell in enumerate(experiment.cells)}
    points = points.sort_values(["layers", "cell"], key=lambda column: column.map(lambda v: order.get(v, v)))
    scores = scores_by_seed(overall(points))
    differences = all_differences(experiment.name, f"Mean {experiment.metric}", "cell", scores)
    write_study(store.folder, report(experiment, points), differences, plot(experiment, points))


def points_of(result: dict, metric: str) -> list[dict]:
    """A line for each group of a run."""
    names = ("cell", "row", "layers", "seed", "learning_rate", "parameters", "steps", "seconds", "commit")
    common = {name: result[name] for name in names}
    if "expert_overlap" in result:
        common["active parameters"] = result["active_parameters"]
        later = [loop for of_layer in result["expert_overlap"] for loop in of_layer[1:]]
        common["expert overlap"] = sum(later) / len(later) if later else math.nan
    return [
        common | {"group": score["group"], "count": score["count"], "score": score[metric]}
        for score in result["scores"]
    ]


def overall(points: pd.DataFrame) -> pd.DataFrame:
    """A line per run: its score over all answers."""
    weighted = points.assign(score=points["score"] * points["count"])
    names = [name for name in points if name not in ("group", "count", "score")]
    sums = weighted.groupby(names, sort=False, dropna=False)[["score", "count"]].sum()
    return (sums["score"] / sums["count"]).rename("score").reset_index()


def summary(points: pd.DataFrame) -> pd.DataFrame:
    """A line per cell: mean, least and greatest score of its seeds, and how it stands to plain and to PLT-2."""
    runs = overall(points)
    scores = scores_by_seed(runs)
    cells = runs.groupby(["layers", "cell", "row"], sort=False)
    table = cells["score"].agg(["mean", "min", "max"]).reset_index()
    for name, bound in (("% gap", BOUND), (f"% of {SUBJECT}", SUBJECT)):
        table[name] = [gap(table, bound, *line) for line in zip(table["layers"], table["mean"], strict=True)]
    for row in (BASE, SUBJECT):
        bases = [reference(table, row, layers) for layers in table["layers"]]
        table[f"minus {row}"] = [
            base and difference(scores, cell, base) for cell, base in zip(table["cell"], bases, strict=True)
        ]
    for name in ("learning_rate", "parameters", "seconds"):
        table[name.replace("_", " ")] = cells[name].mean().to_numpy()
    table["parameters"] = table["parameters"].astype(int)
    for name in (name for name in ("active parameters", "expert overlap") if name in runs):
        table[name] = cells[name].mean().to_numpy()
    table["seeds"] = cells["seed"].nunique().to_numpy()
    return table.drop(columns="row").dropna(axis="columns", how="all")


def reference(table: pd.DataFrame, row: str, layers: int) -> str | None:
    """The cell that others of so many layers are compared with: the first one of a row, if there is any."""
    found = table[(table["layers"] == layers) & (table["row"] == row)]
    return None if found.empty else found["cell"].iloc[0]


def gap(table: pd.DataFrame, bound: str, layers: int, mean: float) -> float:
    """The place of a mean between plain, 0, and the row `bound`, 100 (arXiv 2502.17416, for twice the layers)."""
    means = table.set_index("cell")["mean"]
    start, end = (reference(table, row, layers) for row in (BASE, bound))
    if start is None or end is None or means[start] == means[end]:
        return float("nan")
    return 100 * (mean - means[start]) / (means[end] - means[start]) + 0.0  # which is never -0


def scores_by_seed(runs: pd.DataFrame) -> pd.DataFrame:
    """A line per seed, and a column per cell in the order of the table."""
    return runs.pivot(index="seed", columns="cell", values="score")[list(dict.fromkeys(runs["cell"]))]


def by_group(experiment: Experiment, points: pd.DataFrame) -> pd.DataFrame:
    """Mean scores of the seeds, a column per group."""
    table = points.pivot_table("score", ["layers", "cell"], "group", "mean", sort=False)
    table = table[sorted(table)]
    return table.rename(columns=lambda group: f"{experiment.task.group} {group}").reset_index()


def report(experiment: Experiment, points: pd.DataFrame) -> str:
    table = summary(points)
    parts = [f"# {experiment.name}", experiment.question, method(experiment, points), markdown(table)]
    if any(name.startswith("minus") for name in table):
        parts += [
            f"`minus {SUBJECT}` is the mean of the differences between runs of one seed, and {INTERVAL}; seeds are "
            "few, and all runs are scored on one test."
        ]
    if points["group"].nunique() > 1:
        parts += [f"Mean {experiment.metric} by {experiment.task.group}:", markdown(by_group(experiment, points))]
    return "\n\n".join([*parts, LINK, "![plot](plot.png)"]) + "\n"


def method(experiment: Experiment, points: pd.DataFrame) -> str:
    """The text on how runs were made and learning rates chosen."""
    grid = experiment.learning_rates
    sentences = [
        f"`python -m laboratory.tasks {experiment.name}`: {experiment.steps} steps of {experiment.batch_size} "
        f"sequences; {experiment.metric} on the test; with seed {listed(points['seed'])}; by commit "
        f"{', '.join(sorted({commit[:10] for commit in points['commit']}))}.",
        f"Each row's learning rate is the best of {', '.join(f'{rate:g}' for rate in grid)} in one run with a seed "
        f"that is not shown, of {experiment.tuning_steps or experiment.steps} steps, by the bits on "
        + ("other sequences than the test's." if experiment.validates else "the test itself."),
    ]
    at_edge = points[points["learning_rate"].isin([min(grid), max(grid)])]["cell"].unique()
    if len(at_edge):
        sentences += [f"At an edge of that grid, so that a better rate may lie beyond: {'; '.join(at_edge)}."]
    return " ".join(sentences)


def listed(values: pd.Series) -> str:
    return ", ".join(map(str, sorted(values.unique())))


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
