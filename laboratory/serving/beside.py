# SPDX-License-Identifier: Apache-2.0
"""Rows whose engine runs the code of another checkout, to compare two versions within a round."""

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

from measuring_plt.versions import ROOT, commit_of

PACKAGES = ("configuration_plt", "measuring_plt", "modeling_plt", "serving_plt")  # that an engine runs
MODEL = "serving_plt.vllm.model"


@dataclass(frozen=True)
class Lane:
    """A row, and whose code it runs.

    Attributes:
        row: a name in `timed_engine.ROWS`.
        version: what the code is called; empty for that of this process.
    """

    row: str
    version: str = ""
    checkout: Path = ROOT

    @property
    def name(self) -> str:
        return beside(self.row, self.version) if self.version else self.row


def beside(row: str, version: str) -> str:
    """The name of a row with the code of another checkout."""
    return f"{row}, {version}"


def read_version(text: str) -> tuple[str, Path]:
    """`NAME=CHECKOUT`, as the command line has it."""
    name, _, folder = text.partition("=")
    if not name or not folder or not (Path(folder) / "serving_plt").is_dir():
        raise argparse.ArgumentTypeError(f"must be NAME=CHECKOUT with a checkout of this project, got {text!r}")
    return name, Path(folder).resolve()


@contextmanager
def code_of(checkout: Path) -> Iterator[None]:
    """Let processes that start meanwhile find this project's packages in a checkout: they get this one's path."""
    sys.path.insert(0, str(checkout))
    try:
        yield
    finally:
        sys.path.remove(str(checkout))


def check_code(pool: ProcessPoolExecutor, lane: Lane) -> str:
    """The commit of the code that a row's engine runs.

    Raises:
        RuntimeError: its model is not from the row's checkout.
    """
    # by a function of the standard library: it is that of the process, whatever the checkout has
    file = Path(pool.submit(resolve_name, f"{MODEL}:__file__").result()).resolve()
    if not file.is_relative_to(lane.checkout):
        raise RuntimeError(f"The row {lane.name!r} must run the code of {lane.checkout}, got {file}.")
    return pool.submit(commit_of, *PACKAGES).result()
