# SPDX-License-Identifier: Apache-2.0
"""Plots that also read without colour: every line has a marker and a dash pattern of its own."""

import io
from collections.abc import Iterable, Iterator

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator, NullFormatter, ScalarFormatter

from benchmarks_plt.cache_bytes import CacheBytes
from benchmarks_plt.loops import Looped
from benchmarks_plt.rows import PLAIN
from benchmarks_plt.timing import Timed, Timing

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")


def new_axes(headline: str, title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"{title}\n{headline}", fontsize=10)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    return figure, axes


def style(number: int, total: int) -> dict:
    """Hollow markers, smaller from line to line, so that lines on top of each other all show."""
    return {
        "color": matplotlib.colormaps["viridis"](0.85 * number / max(total - 1, 1)),
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
        "markerfacecolor": "none",
        "markersize": 11 - number % len(MARKERS),
        "linewidth": 1.3,
    }


def spread(timings: list[Timing]) -> list[list[float]]:
    """How far the fastest round is below the median, and the slowest above."""
    below = [timing.median - min(timing.milliseconds) for timing in timings]
    return [below, [max(timing.milliseconds) - timing.median for timing in timings]]


def powers_of_two(axes: Axes, ticks: Iterable[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(ticks)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())


def lines_by_row(results: list) -> Iterator[tuple[str, list, dict]]:
    """For each row of the results, its name, its results, and the style of its line; plain's is black."""
    names = list(dict.fromkeys(item.row.name for item in results))
    for number, name in enumerate(names):
        black = {"color": "black", "linewidth": 2} if name == PLAIN.name else {}
        yield name, [item for item in results if item.row.name == name], style(number, len(names)) | black


def plot_loops(results: list[Looped], headline: str) -> Figure:
    """Latency against loops."""
    point = ", ".join(f"{name} {value}" for name, value in results[0].timed.point.items())
    figure, axes = new_axes(headline, f"Decoding, {point}", "loops", "ms per token (median, fastest to slowest)")
    kinds = list(dict.fromkeys(item.kind for item in results))
    for number, kind in enumerate(kinds):
        items = [item for item in results if item.kind == kind]
        timings = [item.timed.timing for item in items]
        medians = [timing.median for timing in timings]
        loops = [item.timed.row.num_loops for item in items]
        line_style = style(number, len(kinds))
        axes.errorbar(loops, medians, yerr=spread(timings), capsize=3, label=kind, **line_style)
    axes.axhline(results[0].timed.timing.median, color="black", linewidth=0.8, linestyle=":", label="plain (one loop)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def plot_prefill(results: list[Timed], headline: str) -> Figure:
    """Time to first token against prompt length."""
    figure, axes = new_axes(headline, "Prefill, batch 1", "prompt length, tokens", "time to first token, ms (median)")
    for name, items, line_style in lines_by_row(results):
        lengths, medians = [item.point["prompt"] for item in items], [item.timing.median for item in items]
        axes.errorbar(
            lengths, medians, yerr=spread([item.timing for item in items]), capsize=3, label=name, **line_style
        )
    powers_of_two(axes, (item.point["prompt"] for item in results))
    axes.set_yscale("log")
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(LogFormatter(labelOnlyBase=False))
    figure.legend(loc="outside right upper")
    return figure


def plot_cache(results: list[CacheBytes], headline: str) -> Figure:
    """Bytes of the cache against context."""
    figure, axes = new_axes(headline, "KV cache of one sequence", "context, tokens", "measured size, MB")
    for name, items, line_style in lines_by_row(results):
        axes.plot([item.context for item in items], [item.measured / 1e6 for item in items], label=name, **line_style)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper")
    return figure


def rendered(figure: Figure, suffix: str) -> bytes:
    """The bytes of a PNG or SVG file, the same for the same figure."""
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "plt-bench"}):
        figure.savefig(content, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
    return content.getvalue()
