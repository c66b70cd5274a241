# SPDX-License-Identifier: Apache-2.0
"""Writing a folder beside its place, and moving it there when it is complete."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .held_signals import HeldSignals
from .place import check_place


@contextmanager
def staged(target: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder that takes the target's place when the block ends well.

    What was there before is deleted last; it is put back if anything interrupts the exchange. However the block ends,
    the new folder's own parent, which is there for what the work needs besides, goes with it.

    Args:
        overwrite: a PLT or an empty folder may be there before, as long as it is unchanged when the block ends.

    Raises:
        FileExistsError: something else is there, now or when the block ends.
    """
    check_place(target, overwrite)
    target = target.resolve()
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
    """What changes when a path leads to something else, or a folder gets or loses a file; None if nothing is there."""
    if not os.path.lexists(path):
        return None
    status = os.lstat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns


def exchange(target: Path, before: tuple[int, ...] | None, overwrite: bool, work: Path) -> None:
    """Move `work/new` to the target, and what is there, if it was there before, to `work/old`."""
    now = identity(target)
    if now not in (None, before):
        raise FileExistsError(f"{target} must stay as it is while a new folder is written for it, got a change.")
    check_place(target, overwrite)
    if now is not None:
        os.replace(target, work / "old")
    os.replace(work / "new", target)


def clean_up(target: Path, work: Path, made: list[Path]) -> None:
    """Delete `work`; an old target in it goes back to its place unless the new one is there."""
    new, old = work / "new", work / "old"
    if old.exists() and new.exists():
        try:
            os.replace(old, target)
        except OSError as error:
            raise OSError(f"{target} could not be put back, it lies in {old}: {error}") from error
    if work.exists():
        shutil.rmtree(work)
    for parent in made:
        with contextlib.suppress(OSError):
            parent.rmdir()  # of a failed run: empty
