# SPDX-License-Identifier: Apache-2.0
"""The table and the plot of `healing_study`."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from benchmarks_plt.report import markdown

from .healing_trainings import Training


def write_report(results: Path, trainings: Sequence[Training]) -> None:
    """`table.md` and `plot.png` next to the results; nothing while there are none."""
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
    (results / "table.md").write_text(
        report(points, trainings, {result["commit"][:10] for result in found}), encoding="utf-8"
    )
    plot(points).savefig(results / "plot.png", dpi=100)


def report(points: pd.DataFrame, trainings: Sequence[Training], commits: set[str]) -> str:
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
    parts = [
        "# healing",
        "`python -m training_plt.healing_study`: held-out loss in nats per token, of models of 0.16M parameters, "
        f"before and after training; by commit {', '.join(sorted(commits))}. Each result holds its command.",
        markdown(table.reset_index()),
        "![plot](plot.png)",
    ]
    return "\n\n".join(parts) + "\n"


def plot(points: pd.DataFrame) -> Figure:
    """Loss against steps, of what starts with a trained source, and of a PLT from scratch in as many steps."""
    axes = Figure(figsize=(8, 5), layout="constrained").subplots()
    shown = points[points["training"].str.startswith("loop-") | points["training"].str.startswith("plain-")]
    sns.lineplot(shown, x="step", y="loss", hue="training", style="training", errorbar=("pi", 100), ax=axes)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_ylabel("held-out loss, nats per token")
    axes.grid(alpha=0.3)
    return axes.figure
