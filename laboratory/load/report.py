# SPDX-License-Identifier: Apache-2.0
"""The tables and the plots of a load."""

import os
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import vllm
from matplotlib.figure import Figure

from measuring_plt.models import Setup, empty_model
from measuring_plt.rows import ALL_ROWS

from ..plots import plot
from ..report import Section, write
from ..setting import headline, machine
from .clients import FIGURES
from .plan import ROWS, Plan

SHOWN = [name for name in FIGURES if name not in ("completed", "failed", "seconds")]
COUNTED = {"completed": "requests", "left": "left"}  # in all rounds: what the table calls it
COMPARED = ("tokens/s", "first token p50, ms", "per token p50, ms")  # with plain
DRAWN = {  # file of a plot: what it shows
    "throughput": "tokens/s",
    "first_token": "first token p99, ms",
    "per_token": "per token p99, ms",
}


def write_report(folder: Path, plan: Plan, setup: Setup, results: list[dict]) -> None:
    """`load.md`, `.json` and the plots, of the pieces that there are."""
    parameters = empty_model(setup, ALL_ROWS["plain"]).num_parameters()
    cores = {"cpu_threads": len(os.sched_getaffinity(0))}  # of all servers and the clients
    setting = machine(setup.device) | cores | asdict(plan) | {"parameters": parameters, "vllm": vllm.__version__}
    sections = [load_section(results, headline(setting)), memory_section(results)]
    write(folder, "load", f"Under load: {headline(setting)}", setting, sections)


def by_rate(results: list[dict]) -> pd.DataFrame:
    """A line for each rate and row with the median of its rounds, all of them, and the median ratio to plain.

    The ratio is of what ran in the same round.
    """
    rounds = pd.DataFrame(results).pivot(index="round", columns=["rate", "row"], values=[*SHOWN, *COUNTED])
    lines = []
    for rate in sorted({result["rate"] for result in results}):
        for row in ROWS:
            if (SHOWN[0], rate, row) not in rounds:
                continue
            line: dict = {"row": row, "rate": rate}
            for name in SHOWN:
                line[name] = rounds[name, rate, row].median()
                line[f"{name}, by round"] = rounds[name, rate, row].dropna().tolist()
                if name in COMPARED and (name, rate, "plain") in rounds:
                    ratio = rounds[name, rate, row] / rounds[name, rate, "plain"]
                    line[f"{name}, to plain"] = ratio.median()
            lines.append(line | {shown: int(rounds[name, rate, row].sum()) for name, shown in COUNTED.items()})
    return pd.DataFrame(lines)


def load_section(results: list[dict], title: str) -> Section:
    table = by_rate(results)
    notes = [
        "Rate: requests that come in a second, at random times. First token: from the request to it; between tokens: "
        "each gap between two parts of an answer, of which a busy client finds several at once; per token: the mean "
        "gap of an answer. Medians of the rounds; to plain: the median of the ratios to plain in the same round. "
        "Requests: in all rounds. Left: further clients, which hung up before the end of their answers.",
        "Server and clients share the cores. At a rate that a row cannot serve, its requests queue, so that the time "
        "to the first token grows with the length of the load.",
    ]
    return Section("load", "By rate and row", table, notes, {name: draw(table, y, title) for name, y in DRAWN.items()})


def draw(table: pd.DataFrame, name: str, title: str) -> Figure:
    figure, axes = plot(table, title, name, "rate", f"{name}, by round", "row")
    axes.set(xlabel="requests a second", ylabel=f"{name} (median, least to greatest)")
    if name.endswith("ms"):
        axes.set_yscale("log")  # a queue takes a hundred times as long as a step
    else:
        axes.set_ylim(bottom=0)
    return figure


def memory_section(results: list[dict]) -> Section:
    """Before a row's first turn in a round, and after each."""
    lines: dict[tuple[int, str], dict] = {}
    for result in results:
        start = {name: result[name] for name in ("round", "row")} | {"GB before": result["bytes before"] / 1e9}
        line = lines.setdefault((result["round"], result["row"]), start)
        line[f"GB after {result['rate']:g} a second"] = result["bytes after"] / 1e9
    notes = [
        "All processes of a server, before its first turn in a round and after each. A run that was stopped and went "
        "on has new servers."
    ]
    return Section("memory", "Memory of the server", pd.DataFrame([*lines.values()]), notes)
