# SPDX-License-Identifier: Apache-2.0
"""Tables to read, with the JSON and the plots that belong to them."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    """A titled table."""

    name: str  # its key in the JSON file
    title: str
    table: pd.DataFrame  # columns of lists are left to the JSON file
    notes: list[str]  # what must be known to read it
    figures: dict[str, Figure] = field(default_factory=dict)  # by the names of their files

    def __str__(self) -> str:
        return "\n\n".join([f"## {self.title}", markdown(self.table), *self.notes])


def cell(value: object) -> str:
    """At most four digits of a fraction; nothing where there is no value."""
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def markdown(table: pd.DataFrame) -> str:
    shown = table[[name for name in table if not isinstance(table[name].iloc[0], list)]]
    alignment = ["left"] + ["right"] * (len(shown.columns) - 1)
    # every column as objects: pandas would make floats of the whole numbers next to a fraction
    cells = shown.astype(object).map(cell)
    return cells.to_markdown(index=False, tablefmt="github", disable_numparse=True, colalign=alignment)


def records(table: pd.DataFrame) -> list[dict]:
    """For JSON, which has no NaN; `to_json` would round."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def write_whole(file: Path, text: str) -> None:
    """All of the file or nothing: it is written under another name first. Its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.rename(file)


def write_study(folder: Path, table: str, differences: str, figure: Figure) -> None:
    """`table.md`, `differences.md` and `plot.png` of results that lie in a folder."""
    write_whole(folder / "table.md", table)
    write_whole(folder / "differences.md", differences)
    figure.savefig(folder / "plot.png", dpi=100)


def publish(folder: Path, name: str, title: str, setting: dict, sections: Iterable[Section]) -> None:
    """Print the setting, then each section as soon as there is one; the files have all that there are."""
    print(*(f"{key}: {value}" for key, value in setting.items()), sep="\n")
    done = []
    for section in sections:
        done.append(section)
        print(f"\n{section}", flush=True)
        write(folder, name, title, setting, done)
    print(f"\nWrote {folder.resolve()}")


def write(folder: Path, name: str, title: str, setting: dict, sections: list[Section]) -> None:
    """`name`.md, `name`.json, and the plots of the sections."""
    notes = "\n".join(f"- {key}: {value}" for key, value in setting.items())
    parts = [f"# {title}", notes, *map(str, sections)]
    write_whole(folder / f"{name}.md", "\n\n".join(parts) + "\n")
    data = {"setting": setting} | {section.name: records(section.table) for section in sections}
    write_whole(folder / f"{name}.json", json.dumps(data, indent=2) + "\n")
    with matplotlib.rc_context({"svg.hashsalt": "plt"}):  # the same file for the same figure
        for stem, figure in [item for section in sections for item in section.figures.items()]:
            for suffix in ("png", "svg"):
                figure.savefig(folder / f"{stem}.{suffix}", dpi=150, metadata={"Date": None})
