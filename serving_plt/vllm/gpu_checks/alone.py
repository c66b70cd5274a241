# SPDX-License-Identifier: Apache-2.0
"""A part in a process of its own, which may fail, crash, or take too long.

    python -m serving_plt.vllm.gpu_checks.alone MODULE ROWS [--dry-run]

writes the rows of a module's `rows(scale)` to a file, one JSON a line, each as soon as it is there.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from ..process_group import process_group
from .parts import Part
from .row import DID_NOT_FIT, FAILED, MISSING, Row, failed

DRY_RUN = "--dry-run"
LOG_LINES = 1000  # that are kept: an engine says a hundred, and the first of four may be the one that fails


def run_alone(part: Part, folder: Path, minutes: float, dry_run: bool) -> tuple[list[Row], list[str]]:
    """The rows of a part, with what has ended it too early as the last, and the end of what it has said.

    Args:
        folder: for files that are of no use afterwards.
        minutes: after which the part and all that it has started are ended.
    """
    if find_spec(part.needs) is None:
        return [Row("all of this part", MISSING, {"package": part.needs})], []
    path, log = folder / "rows", folder / "log"
    path.touch()
    command = [sys.executable, "-m", __spec__.name, part.module, path, *[DRY_RUN] * dry_run]
    with process_group(command, log) as process:
        try:
            code = process.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            code = None
    rows = [Row(**json.loads(line)) for line in path.read_text().splitlines()]
    said = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    if code is None:
        rows.append(Row("what is not above", DID_NOT_FIT, {"error": f"It took more than {minutes:g} minutes."}))
    elif code != 0:
        name = signal.Signals(-code).name if code < 0 else f"status {code}"
        rows.append(Row("what is not above", FAILED, {"error": f"The process ended with {name}."}))
    return rows, said


def main(module: str, path: str, *options: str) -> None:
    with open(path, "w", buffering=1) as file:  # a line at a time: the process may be ended

        def write(row: Row) -> None:
            print(json.dumps(asdict(row)), file=file)

        os.environ["TQDM_DISABLE"] = "1"  # the log is not read while it grows
        try:
            from .scale import DRY, FULL  # imports torch

            for row in import_module(module).rows(DRY if DRY_RUN in options else FULL):
                write(row)
        except Exception as error:
            write(failed("what is not above", error))


if __name__ == "__main__":
    main(*sys.argv[1:])
