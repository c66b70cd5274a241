# SPDX-License-Identifier: Apache-2.0
"""The experiments: each file defines one, as `EXPERIMENT`."""

from importlib import import_module
from pathlib import Path

from .harness.definition import Experiment


def names() -> list[str]:
    """The names of all experiments, in alphabetical order."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.py") if not file.stem.startswith("__"))


def load(name: str) -> Experiment:
    """The experiment of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in names():
        raise ValueError(f"`name` must be one of {', '.join(names())}, got {name!r}.")
    return import_module(f"{__name__}.{name}").EXPERIMENT
