# SPDX-License-Identifier: Apache-2.0
"""The table and the plot of the study."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from training_plt.heal.controls import WORDS

from ..differences import LINK, all_differences
from ..report import markdown, write_study
from .trainings import Training


def write_report(results: Path, trainings: Sequence[Training]) -> None:
    """`table.md`, `differences.md` and `plot.png` next to the results; nothing while there are none."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob("*_seed-*.json"))]
    if not found:
        return
    points = pd.DataFrame(
        [
            {"training": result["name"], "seed": result["seed"], "step": step, "loss": loss}
            for result in found
            for step, loss in result["losses"]
        ]
    )
    last = points.groupby(["seed", "training"])["loss"].last().unstack()
    order = [training.name for training in trainings if training.name in last]
    differences = all_differences("healing", "Held-out loss in nats per token", "training", last[order])
    write_study(results, report(found, points, trainings), differences, plot(points))


def report(found: list[dict], points: pd.DataFrame, trainings: Sequence[Training]) -> str:
    runs = points.groupby(["training", "seed"])["loss"].agg(["first", "last"])
    table = runs["last"].groupby("training").agg(["mean", "min", "max", "count"])
    table.insert(0, "before", runs["first"].groupby("training").mean())
    sources = {training.name: training.source or training.name for training in trainings}
    # of each seed against the source of the same seed
    change = [
        100 * (loss / runs.loc[(sources[name], seed), "last"] - 1) for (name, seed), loss in runs["last"].items()
    ]
    table["% from its source"] = pd.Series(change, runs.index).groupby("training").mean()
    order = [training.name for training in trainings if training.name in table.index]
    table = table.loc[order].rename(columns={"count": "seeds"})
    table.insert(0, "steps", [next(each.steps for each in trainings if each.name == name) for name in order])
    by = ", ".join(sorted({each["commit"][:10] for each in found}))
    parts = [
        "# healing",
        "`python -m laboratory.healing`: held-out loss in nats per token, of models of 0.16M parameters, "
        f"before and after training; by commit {by}. Each result holds its command.",
        markdown(table.reset_index()),
    ]
    if any(each.get("controls") for each in found):
        parts += ["Models without what their later loops read, mean loss:", markdown(without_loops(found, order))]
    parts += [LINK, "![plot](plot.png)"]
    return "\n\n".join(parts) + "\n"


def without_loops(found: list[dict], order: list[str]) -> pd.DataFrame:
    """A line per training whose results have controls: its loss, and the losses without what its later loops read."""
    lines = [
        {"training": each["name"], "loss": each["losses"][-1][1]} | each["controls"]
        for each in found
        if each.get("controls")
    ]
    table = pd.DataFrame(lines).groupby("training").mean()
    table = table.loc[[name for name in order if name in table.index]]
    return table.rename(columns=WORDS).reset_index()


def plot(points: pd.DataFrame) -> Figure:
    """Loss against steps, of what starts with a trained source, and of a PLT from scratch in as many steps."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    shown = points[points["training"].str.startswith("loop-") | points["training"].str.startswith("plain-")]
    sns.lineplot(shown, x="step", y="loss", hue="training", style="training", errorbar=("pi", 100), ax=axes)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_ylabel("held-out loss, nats per token")
    axes.grid(alpha=0.3)
    return figure
