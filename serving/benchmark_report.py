# SPDX-License-Identifier: Apache-2.0
"""The tables and the plot of `benchmark`."""

from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
import torch
import vllm
from matplotlib.figure import Figure

from benchmarks_plt.report import Section, write
from benchmarks_plt.rows import PUBLISHED, PUBLISHED_MS
from benchmarks_plt.setting import device_name, versions


def write_report(folder: Path, plan: dict[str, Any], rows: list[str], results: list[dict[str, Any]]) -> None:
    """`benchmark.md`, `.json` and `.png`, of the runs that there are."""
    found = [row for row in rows if any(result["row"] == row for result in results)]
    sections = [times(kind, found, results) for kind in ("decode", "prefill") if results[0][kind]]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plain = [result for result in results if result["row"] == "plain"]
    setting = {"device": device_name(device), "cpu_threads": plain[0]["threads"], "rounds": len(plain)}
    setting |= {"parameters": plain[0]["parameters"], **plan, **versions(), "vllm": vllm.__version__}
    write(folder, "benchmark", setting, [*sections, projections(plain), memory(found, results)])


def times(kind: str, rows: list[str], results: list[dict[str, Any]]) -> Section:
    """Milliseconds of the fastest round, ratios to plain, and the spread of the rounds."""
    lines = []
    for key in results[0][kind]:
        best = {row: min(each[kind][key] for each in results if each["row"] == row) for row in rows}
        worst = {row: max(each[kind][key] for each in results if each["row"] == row) for row in rows}
        for row in rows:
            line = {"row": row, {"decode": "batch", "prefill": "tokens"}[kind]: int(key)}
            line |= {"ms": best[row], "slowest round / fastest": worst[row] / best[row]}
            line |= {"tokens/s": 1000 * int(key) / best[row], "to plain": best[row] / best["plain"]}
            if "plt-2, in turn" in best and row == "plt-2":
                line["to plt-2 in turn"] = best[row] / best["plt-2, in turn"]
            if kind == "decode":
                line["paper, batch 4"] = PUBLISHED_MS.get(row, float("nan")) / PUBLISHED_MS["plain"]
            lines.append(line)
    table = pd.DataFrame(lines)
    title = {"decode": "A step in which every request decodes one token", "prefill": "A prompt alone"}[kind]
    notes = [f"Paper: {PUBLISHED}."] if kind == "decode" else []
    return Section(kind, title, table, notes, {kind: plot(table)})


def plot(table: pd.DataFrame) -> Figure:
    axes = Figure(figsize=(7, 4), layout="constrained").subplots()
    sns.barplot(table, x=table.columns[1], y="to plain", hue="row", ax=axes)
    axes.axhline(1, color="black", linewidth=1)
    axes.grid(axis="y", alpha=0.3)
    return axes.figure


def projections(plain: list[dict[str, Any]]) -> Section:
    """What some rows cost in the projections alone: a step of R loops and B requests has R * B rows."""
    best = {rows: min(each["projections"][rows] for each in plain) for rows in plain[0]["projections"]}
    table = pd.DataFrame([{"rows": int(rows), "ms": ms, "to one row": ms / best["1"]} for rows, ms in best.items()])
    return Section("projections", "All projections and MLPs of the plain model, by the number of rows", table, [])


def memory(rows: list[str], results: list[dict[str, Any]]) -> Section:
    """Bytes of the process after loading and at most, and of the cache by vLLM's own report."""
    first = {row: next(each for each in results if each["row"] == row) for row in rows}
    table = pd.DataFrame(
        [
            {
                "row": row,
                "KV bytes per token": first[row]["KV bytes per token"],
                "to plain": first[row]["KV bytes per token"] / first["plain"]["KV bytes per token"],
                "GB after loading": first[row]["bytes after loading"] / 1e9,
                "GB at most": first[row]["bytes at most"] / 1e9,
            }
            for row in rows
        ]
    )
    note = (
        "KV bytes per token are those of one request of 8192 tokens, by vLLM's count, windows and carry included. A "
        "window holds the tokens of a whole step while it prefills: it shrinks with `max_num_batched_tokens`."
    )
    return Section("memory", "Memory", table, [note])
