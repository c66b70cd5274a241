# SPDX-License-Identifier: Apache-2.0
"""A folder that is written next to its target, and takes its place when it is complete."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .held_signals import HeldSignals
from .place import check_place, follow


@contextmanager
def staged(target: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder that takes the target's place when the block ends without an error.

    An old target is deleted last, and put back if anything interrupts the exchange. The new folder has a parent of
    its own for further temporary files; it is deleted however the block ends.

    Args:
        overwrite: whether a PLT or an empty folder may be replaced; it must not change while the block runs.

    Raises:
        FileExistsError: something else is at the target, at the start or at the end of the block.
    """
    check_place(target, overwrite)
    target = follow(target)
    before = identity(target)
    made = [parent for parent in target.parents if not parent.exists()]
    work = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    with HeldSignals() as signals:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            (work / "new").mkdir(parents=True)
            signals.waiting = False
            yield work / "new"
            signals.waiting = True
            exchange(target, before, overwrite, work)
        finally:
            signals.waiting = True
            clean_up(target, work, made)


def identity(path: Path) -> tuple[int, ...] | None:
    """A value that changes when a path leads elsewhere, or its folder gains or loses a file; None without a file."""
    if not os.path.lexists(path):
        return None
    status = os.lstat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns


def exchange(target: Path, before: tuple[int, ...] | None, overwrite: bool, work: Path) -> None:
    """Move an old target, if it is still the one from the start, to `work/old`, and `work/new` to the target."""
    now = identity(target)
    if now not in (None, before):
        raise FileExistsError(f"{target} must not change while its new folder is written, got a change.")
    check_place(target, overwrite)
    if now is not None:
        os.replace(target, work / "old")
    os.replace(work / "new", target)


def clean_up(target: Path, work: Path, made: list[Path]) -> None:
    """Delete `work`; an old target in it goes back to its place unless the new one has taken it."""
    new, old = work / "new", work / "old"
    if old.exists() and new.exists():
        try:
            os.replace(old, target)
        except OSError as error:
            raise OSError(f"{target} could not be put back, it is now {old}: {error}") from error
    if work.exists():
        shutil.rmtree(work)
    for parent in made:
        with contextlib.suppress(OSError):
            parent.rmdir()  # empty after a failed run, and only then
