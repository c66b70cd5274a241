# SPDX-License-Identifier: Apache-2.0
"""The tables and the plots of the benchmark."""

from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import seaborn as sns
import vllm
from matplotlib.figure import Figure

from measuring_plt.rows import IN_TURN, PUBLISHED, PUBLISHED_MS

from ..report import Section, write
from ..setting import headline, machine
from ..timing import ratios_to_plain
from . import loops as benchmark_loops
from .beside import beside

Place = dict[str, int]  # where in a table: `{"batch": 4, "context": 32}`
Places = list[tuple[Place, list[dict[str, float]]]]  # each with milliseconds of all rows in each round
Measured = dict[str, Places]  # by kind


def write_report(folder: Path, plan: dict[str, Any], engines: list[dict[str, Any]], measured: Measured) -> None:
    """`benchmark.md`, `.json` and `.png`, of the measurements that there are."""
    rounds = max(len(lines) for places in measured.values() for _, lines in places)
    setting = machine() | {"cpu_threads": engines[0]["threads"], "rounds": rounds}
    # each engine's cache is its own
    setting |= {"parameters": engines[0]["parameters"]} | {key: plan[key] for key in plan if key != "kv_bytes"}
    setting |= {"vllm": vllm.__version__, "versions": versions(engines)}
    title = headline(setting)
    sections = [times(kind, measured[kind], setting["versions"]) for kind in ("decode", "prefill") if measured[kind]]
    if measured["decode"] and {engine["row"] for engine in engines} >= benchmark_loops.ROWS:
        sections.append(loops_section(measured["decode"], title))
    if measured["projections"]:
        sections.append(projections(measured["projections"]))
    write(folder, "benchmark", title, setting, [*sections, memory(engines)])


def versions(engines: list[dict[str, Any]]) -> dict[str, str]:
    """The commit of each version of the code, by its name; that of the command has none."""
    return {engine["version"]: engine["commit"] for engine in engines}


def loops_section(places: Places, title: str) -> Section:
    """Of the least context, and of this version of the code."""
    context = min(place["context"] for place, _ in places)
    found = [(place["batch"], lines) for place, lines in places if place["context"] == context]
    by_batch = {batch: pd.DataFrame(lines)[sorted(benchmark_loops.ROWS)] for batch, lines in found}
    return benchmark_loops.loops_section(by_batch, context, title)


def times(kind: str, places: Places, commits: dict[str, str]) -> Section:
    """Milliseconds and ratios to plain, which ran in the same round: their median, and how far the rounds differ."""
    tables = []
    for place, lines in places:
        milliseconds = pd.DataFrame(lines)
        ratios, middle = ratios_to_plain(milliseconds), milliseconds.median()
        tokens = place["batch"] if kind == "decode" else place["tokens"]
        figures: dict[str, Any] = place | {
            "ms": middle,
            "tokens/s": 1000 * tokens / middle,
            "to plain": ratios.median(),
        }
        figures |= {"least": ratios.min(), "greatest": ratios.max()}
        figures["ms, by round"] = pd.Series(milliseconds.to_dict("list"))
        if kind == "decode":
            figures["paper, batch 4"] = pd.Series(PUBLISHED_MS) / PUBLISHED_MS["plain"]
        if {"plt-2", IN_TURN} <= set(milliseconds):
            figures["to plt-2 in turn"] = milliseconds[["plt-2"]].div(milliseconds[IN_TURN], axis="index").median()
        for version in filter(None, commits):
            figures[f"to {version}"] = ratios_to_version(milliseconds, version)
        tables.append(pd.DataFrame(figures, index=milliseconds.columns.rename("row")).reset_index())
    table = pd.concat(tables, ignore_index=True)
    title = {"decode": "A step in which every request decodes one token", "prefill": "A prompt alone"}[kind]
    notes = ["Ratios are medians of the rounds, each to what ran in the same round; ms are medians too."]
    if kind == "decode":
        notes.append(f"Paper: {PUBLISHED}.")
    return Section(kind, title, table, notes, {kind: plot(table)})


def ratios_to_version(milliseconds: pd.DataFrame, version: str) -> pd.Series:
    """How many times as long a row takes as it does with another version of the code."""
    both = {row: beside(row, version) for row in milliseconds if beside(row, version) in milliseconds}
    return pd.Series({row: (milliseconds[row] / milliseconds[other]).median() for row, other in both.items()})


def plot(table: pd.DataFrame) -> Figure:
    places = [name for name in ("batch", "context", "tokens") if name in table]
    labels = table[places].apply(lambda place: ", ".join(f"{name} {value}" for name, value in place.items()), axis=1)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    sns.barplot(table, x=labels.to_numpy(), y="to plain", hue="row", ax=axes)
    axes.axhline(1, color="black", linewidth=1)
    axes.grid(axis="y", alpha=0.3)
    return figure


def projections(places: Places) -> Section:
    """The cost of some rows in the projections alone: a step of R loops and B requests has R * B rows."""
    found = {place["rows"]: median(line["plain"] for line in lines) for place, lines in places}
    table = pd.DataFrame([{"rows": rows, "ms": ms, "to one row": ms / found[1]} for rows, ms in found.items()])
    return Section("projections", "All projections and MLPs of the plain model, by the number of rows", table, [])


def memory(engines: list[dict[str, Any]]) -> Section:
    """Bytes of the process after loading and at most, and of the cache by vLLM's own report."""
    table = pd.DataFrame(
        [
            {
                "row": engine["row"],
                "KV bytes per token": engine["KV bytes per token"],
                "to plain": engine["KV bytes per token"] / engines[0]["KV bytes per token"],
                "GB after loading": engine["bytes after loading"] / 1e9,
                "GB at most": engine["bytes at most"] / 1e9,
                "GB of the cache": engine["cache bytes"] / 1e9,
            }
            for engine in engines
        ]
    )
    tokens = engines[0]["longest request"]
    note = (
        f"KV bytes per token are those of one request of {tokens} tokens, by vLLM's count, with windows and carry. "
        "A window holds the tokens of a whole step while it prefills: it shrinks with `max_num_batched_tokens`."
    )
    return Section("memory", "Memory", table, [note])
