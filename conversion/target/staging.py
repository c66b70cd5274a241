# SPDX-License-Identifier: Apache-2.0
"""A folder that is written next to its target, and takes its place when it is complete."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A new folder that becomes `target` if the block ends without an error, and is deleted if not.

    Its parent is a folder of its own, for further temporary files; it is deleted however the block ends.

    Raises:
        FileExistsError: something is at the target, at the start or at the end of the block.
    """
    check_free(target)
    target = Path(os.path.realpath(target))
    made = [parent for parent in target.parents if not parent.exists()]
    work = target.with_name(f"{target.name}.unfinished-{secrets.token_hex(4)}")
    try:
        (work / "new").mkdir(parents=True)
        yield work / "new"
        check_free(target)
        os.rename(work / "new", target)
    finally:
        try:
            clean_up(work, made)
        finally:
            clean_up(work, made)  # what an interruption of the first has left


def check_free(target: Path) -> None:
    """FileExistsError if a path leads to anything, or is a link."""
    if os.path.lexists(target):
        raise FileExistsError(f"The target must not exist yet, got {target}.")


def clean_up(work: Path, made: list[Path]) -> None:
    """Delete the temporary folder, and of the parents made for it those that are empty."""
    if work.exists():
        shutil.rmtree(work)
    for parent in made:
        with contextlib.suppress(OSError):
            parent.rmdir()
