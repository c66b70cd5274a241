# SPDX-License-Identifier: Apache-2.0
"""The JSON and the table of `check_on_gpu`."""

import json
import os
from pathlib import Path
from typing import Any

NAME = "check_on_gpu"


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """`check_on_gpu.json` and `.md`, each beside its old one and then in its place, so that one is always whole."""
    texts = {"json": json.dumps(finite(report), indent=2, allow_nan=False), "md": table(report)}
    for suffix, text in texts.items():
        new = folder / f".{NAME}.{suffix}"
        new.write_text(text + "\n")
        os.replace(new, folder / f"{NAME}.{suffix}")


def finite(value: Any) -> Any:
    """The same, with words for the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return str(value) if isinstance(value, float) and not abs(value) < float("inf") else value


def table(report: dict[str, Any]) -> str:
    environment = [f"- {name}: {value}" for name, value in report["environment"].items()]
    lines = ["| part | check | result | figures |", "|---|---|---|---|"]
    lines += [
        f"| {row['part']} | {row['check']} | {row['result']} | {figures(row['figures'])} |" for row in report["rows"]
    ]
    return "\n".join([f"# {report['command']}", "", *environment, "", *lines])


def figures(values: dict[str, Any]) -> str:
    shown = [f"{name} {cell(value)}" for name, value in values.items()]
    return ", ".join(shown).replace("|", "/").replace("\n", " ")


def cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
