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
from serving_plt.vllm.timed_engine import CONTEXT

from ..report import Section, write
from ..setting import headline, machine
from ..timing import ratios_to_plain
from . import loops as benchmark_loops


def write_report(
    folder: Path, plan: dict[str, Any], engines: list[dict[str, Any]], rounds: list[dict[str, Any]]
) -> None:
    """`benchmark.md`, `.json` and `.png`, of the rounds that there are."""
    setting = machine() | {"cpu_threads": engines[0]["threads"], "rounds": len(rounds)}
    setting |= {"parameters": engines[0]["parameters"], **plan, "vllm": vllm.__version__}
    title = headline(setting)
    sections = [times(kind, rounds) for kind in ("decode", "prefill") if rounds[0][kind]]
    if {engine["row"] for engine in engines} >= benchmark_loops.ROWS:
        by_batch = {int(batch): of_rounds("decode", batch, rounds) for batch in rounds[0]["decode"]}
        sections.append(benchmark_loops.loops_section(by_batch, CONTEXT, title))
    write(folder, "benchmark", title, setting, [*sections, projections(rounds), memory(engines)])


def of_rounds(kind: str, number: str, rounds: list[dict[str, Any]]) -> pd.DataFrame:
    """Milliseconds, a line per round and a column per row."""
    return pd.DataFrame([one[kind][number] for one in rounds])


def times(kind: str, rounds: list[dict[str, Any]]) -> Section:
    """Milliseconds and ratios to plain, which ran in the same round: their median, and how far the rounds differ."""
    tables = []
    for number in rounds[0][kind]:
        milliseconds = of_rounds(kind, number, rounds)
        ratios, middle = ratios_to_plain(milliseconds), milliseconds.median()
        figures = {{"decode": "batch", "prefill": "tokens"}[kind]: int(number), "ms": middle}
        figures |= {"tokens/s": 1000 * int(number) / middle, "to plain": ratios.median()}
        figures |= {"least": ratios.min(), "greatest": ratios.max()}
        figures["ms, by round"] = pd.Series(milliseconds.to_dict("list"))
        if kind == "decode":
            figures["paper, batch 4"] = pd.Series(PUBLISHED_MS) / PUBLISHED_MS["plain"]
        if {"plt-2", IN_TURN} <= set(milliseconds):
            figures["to plt-2 in turn"] = milliseconds[["plt-2"]].div(milliseconds[IN_TURN], axis="index").median()
        tables.append(pd.DataFrame(figures, index=milliseconds.columns.rename("row")).reset_index())
    table = pd.concat(tables, ignore_index=True)
    title = {"decode": "A step in which every request decodes one token", "prefill": "A prompt alone"}[kind]
    notes = ["Ratios are medians of the rounds, each to what ran in the same round; ms are medians too."]
    if kind == "decode":
        notes.append(f"Paper: {PUBLISHED}.")
    return Section(kind, title, table, notes, {kind: plot(table)})


def plot(table: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    sns.barplot(table, x=table.columns[1], y="to plain", hue="row", ax=axes)
    axes.axhline(1, color="black", linewidth=1)
    axes.grid(axis="y", alpha=0.3)
    return figure


def projections(rounds: list[dict[str, Any]]) -> Section:
    """The cost of some rows in the projections alone: a step of R loops and B requests has R * B rows."""
    found = {rows: median(one["projections"][rows]["plain"] for one in rounds) for rows in rounds[0]["projections"]}
    table = pd.DataFrame([{"rows": int(rows), "ms": ms, "to one row": ms / found["1"]} for rows, ms in found.items()])
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
            }
            for engine in engines
        ]
    )
    note = (
        "KV bytes per token are those of one request of 8192 tokens, by vLLM's count, windows and carry included. A "
        "window holds the tokens of a whole step while it prefills: it shrinks with `max_num_batched_tokens`."
    )
    return Section("memory", "Memory", table, [note])
