# SPDX-License-Identifier: Apache-2.0
"""The results on disk: one JSON file per run."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from huggingface_hub.errors import StrictDataclassError

from configuration_plt import PLTConfig

from ...report import write_whole
from .definition import Run

NO_SETTING = ("transformers_version", "auto_map")  # of a config


class Store:
    """The folder of an experiment's results, which several processes may fill."""

    def __init__(self, folder: Path):
        self.folder = folder

    def file(self, run: Run) -> Path:
        return self.folder / f"{run.name}.json"

    def read(self, run: Run) -> dict | None:
        """The result of a run; None if there is none yet.

        Raises:
            ValueError: the file is of no use, or of a run with other settings.
        """
        if not self.file(run).exists():
            return None
        found, wanted = load(self.file(run)), json.loads(json.dumps(run.settings()))
        for name, value in wanted.items():
            is_same = same_config(found.get(name), value) if name == "config" else found.get(name) == value
            if not is_same:
                raise ValueError(
                    f"{self.file(run)} must be of a run with {name} = {value}, got {found.get(name)}: move it away to "
                    "run it again."
                )
        return found

    def results(self) -> list[dict]:
        """The results of all runs, in the order of their names."""
        return [load(file) for file in sorted(self.folder.glob("*.json"))]

    @contextmanager
    def claim(self, run: Run) -> Iterator[bool]:
        """Whether the run is this process's to make: it has no result, and no other process is making it.

        The system lets go of the lock when a process ends, however it ends.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.file(run).with_suffix(".lock"), timeout=0)
        try:
            with lock:
                yield self.read(run) is None
                Path(lock.lock_file).unlink(missing_ok=True)
        except Timeout:
            yield False

    def write(self, run: Run, result: dict) -> None:
        write_whole(self.file(run), json.dumps(result, indent=1) + "\n")


def same_config(found: Any, wanted: dict) -> bool:
    """Whether two configs describe one model: a field that an older result lacks is what a config makes of that."""
    if not isinstance(found, dict):
        return False
    try:
        return fields_of(found) == fields_of(wanted)
    except (ValueError, StrictDataclassError):  # no config of today
        return False


def fields_of(config: dict) -> dict[str, Any]:
    fields = PLTConfig.from_dict(config).to_dict()
    return {name: value for name, value in fields.items() if name not in NO_SETTING}


def load(file: Path) -> dict:
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} must be the JSON of a run, got {error}: move it away to run it again.") from None
    if not isinstance(result, dict) or "scores" not in result:
        raise ValueError(f"{file} must be the JSON of a run with `scores`, got none: move it away to run it again.")
    return result
