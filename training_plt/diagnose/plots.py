# SPDX-License-Identifier: Apache-2.0
"""Plots of what each loop of a model adds."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def plot_loops(table: pd.DataFrame) -> Figure:
    """A panel for each column of a table with one row per loop; loops without a value are left out."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = figure.subplots(2, -(-table.shape[1] // 2), sharex=True)
    for axes, name in zip(panels.flat, table, strict=True):
        sns.lineplot(table[name].dropna(), marker="o", color="black", ax=axes)
        axes.set(title=name.replace("_", " "), xlabel="loop", ylabel=None, xlim=(-0.3, len(table) - 0.7))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    return figure


def plot_gates(mean_gate: list[list[float | None]], layers: range) -> Figure:
    """The mean gate of each looped layer in each later loop: near 1 it reads the shared KV, near 0 its own window."""
    gates = pd.DataFrame(mean_gate, layers, dtype=float).drop(columns=0)
    figure = Figure(figsize=(2.5 + 0.8 * gates.shape[1], 1.5 + 0.35 * gates.shape[0]), layout="constrained")
    axes = figure.subplots()
    sns.heatmap(gates, vmin=0, vmax=1, cmap="viridis", annot=True, fmt=".2f", ax=axes)
    axes.set(title="mean gate", xlabel="loop", ylabel="layer")
    return figure
