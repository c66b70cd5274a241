# SPDX-License-Identifier: Apache-2.0
"""Tables to read, with the JSON and the plots behind them."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from matplotlib.figure import Figure
from tabulate import tabulate

from benchmarks_plt.plots import rendered
from benchmarks_plt.setting import Setting


@dataclass(frozen=True)
class Section:
    """A titled table.

    Attributes:
        name: its key in the JSON file.
        records: one per line of the table, all with the same keys; lists are left to the JSON file.
        notes: what must be known to read it.
        figures: plots of it, by the names of their files.
    """

    name: str
    title: str
    records: list[dict]
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n\n".join([f"## {self.title}", table(self.records), *self.notes])


def cell(value: str | int | float | None) -> str:
    """At most four digits of a fraction; nothing for None."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value)


def table(records: list[dict]) -> str:
    columns = [name for name, value in records[0].items() if not isinstance(value, list)]
    rows = [[cell(record[name]) for name in columns] for record in records]
    alignment = ["left"] + ["right"] * (len(columns) - 1)
    return tabulate(rows, headers=columns, tablefmt="github", disable_numparse=True, colalign=alignment)


def write(folder: Path, name: str, setting: Setting, sections: list[Section]) -> None:
    """`name`.md, `name`.json, and the plots of the sections."""
    text = "\n\n".join([f"# {setting.headline}", "\n".join(f"- {line}" for line in setting.lines())])
    replace(folder / f"{name}.md", ("\n\n".join([text, *map(str, sections)]) + "\n").encode())
    data = {"setting": asdict(setting)} | {section.name: section.records for section in sections}
    replace(folder / f"{name}.json", (json.dumps(data, indent=2) + "\n").encode())
    for section in sections:
        for stem, figure in section.figures.items():
            for suffix in ("png", "svg"):
                replace(folder / f"{stem}.{suffix}", rendered(figure, suffix))


def replace(path: Path, content: bytes) -> None:
    """Write beside, then rename: whoever reads the file finds all of it."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(content)
    os.replace(new, path)
