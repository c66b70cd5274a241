# SPDX-License-Identifier: Apache-2.0
"""Plots that also read without colour: every line has a marker and a dash pattern of its own."""

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator, NullFormatter, ScalarFormatter, StrMethodFormatter

BATCHES = (1, 2, 4, 8, 16, 32, 64)  # that are drawn


def looks(names: Sequence[str]) -> dict:
    """Colours, widths and markers of the lines of these names."""
    colours = sns.color_palette("viridis", len(names))
    return {
        "palette": dict(zip(names, colours, strict=True)) | {"plain": "black"},
        "sizes": (1, 4),  # thinner from line to line, so that lines on top of each other all show
        "markers": True,
    }


def plot(table: pd.DataFrame, headline: str, title: str, x: str, y: str, lines: str) -> tuple[Figure, Axes]:
    """A line for each value of the column `lines`; where `y` holds lists of rounds, the median with all of them."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    points = table.explode(y).astype({y: float})
    names = points[lines].unique()
    sns.lineplot(
        points,
        x=x,
        y=y,
        hue=lines,
        style=lines,
        size=lines,
        estimator="median",
        errorbar=("pi", 100),  # fastest to slowest
        err_style="bars",
        ax=axes,
        **looks(names),
    )
    axes.set_title(f"{title}\n{headline}", fontsize=10)
    axes.grid(alpha=0.3)
    return figure, axes


def plot_loops(table: pd.DataFrame, headline: str) -> tuple[Figure, Axes]:
    """Latency against loops, and at each point of PLT the parallel efficiency."""
    title = f"Decoding, batch {table['batch'][0]}, context {table['context'][0]}; numbers: parallel efficiency"
    figure, axes = plot(table, headline, title, "loops", "ms per token, by round", "kind")
    axes.axhline(table["ms per token"][0], color="black", linewidth=0.8, linestyle=":", label="plain (one loop)")
    together = table[table["kind"] == "PLT"]
    for loops, ms, efficiency in together[["loops", "ms per token", "parallel efficiency"]].to_numpy():
        axes.annotate(f"{efficiency:.2f}", (loops, ms), (0, -14), textcoords="offset points", ha="center", fontsize=8)
    axes.set_ylabel("ms per token (median, fastest to slowest)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure, axes


def plot_loops_and_bound(table: pd.DataFrame, headline: str) -> Figure:
    """The same with the bound of PLT."""
    figure, axes = plot_loops(table, headline)
    together = table[table["kind"] == "PLT"]
    axes.plot(together["loops"], together["bound, ms"], color="tab:red", linestyle="--", label="PLT, bound")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def plot_prefill(table: pd.DataFrame, headline: str) -> Figure:
    """Time to first token against prompt length."""
    figure, axes = plot(table, headline, "Prefill, batch 1", "prompt", "ms to first token, by round", "row")
    axes.set(xlabel="prompt length, tokens", ylabel="ms to first token (median, fastest to slowest)", yscale="log")
    axes.set_xscale("log", base=2)
    axes.set_xticks(table["prompt"].unique())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(LogFormatter(labelOnlyBase=False))
    sns.move_legend(axes, "upper left", bbox_to_anchor=(1, 1))
    return figure


def plot_cache(table: pd.DataFrame, headline: str) -> Figure:
    """Bytes of the cache against context."""
    table = table.assign(size=table["bytes, measured"] / 1e6)
    figure, axes = plot(table, headline, "KV cache of one sequence", "context", "size", "row")
    axes.set(xlabel="context, tokens", ylabel="measured size, MB", xlim=(0, None), ylim=(0, None))
    sns.move_legend(axes, "upper left", bbox_to_anchor=(1, 1))
    return figure


def plot_fit(counted: pd.DataFrame, usable: dict[int, float], title: str) -> Figure:
    """GB against batch, a panel for each model and context; a dotted line for what is usable of each card."""
    models, contexts, rows = (counted[name].unique().tolist() for name in ("model", "context", "row"))
    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(len(models), len(contexts), sharex=True, sharey=True)
    lines = counted.merge(pd.DataFrame({"batch": BATCHES}), how="cross")
    lines["GB"] = (lines["weights"] + lines["batch"] * lines["sequence"]) / 1e9
    for (model, context), group in lines.groupby(["model", "context"]):
        axes = panels[models.index(model), contexts.index(context)]
        sns.lineplot(group, x="batch", y="GB", hue="row", style="row", size="row", ax=axes, **looks(rows))
        for card, size in usable.items():
            axes.axhline(size, color="black", linewidth=0.8, linestyle=":")
            axes.annotate(f"{card} GB card", (BATCHES[0], size), fontsize=7, va="bottom")
        axes.set_title(f"{model}, context {context}", fontsize=9)
        axes.grid(alpha=0.3)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(BATCHES)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.get_legend().remove()
    panels[0, 0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure
