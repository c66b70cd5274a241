# SPDX-License-Identifier: Apache-2.0
"""Where a folder may be written: only a model is ever replaced, and nothing that is being read."""

import os
import re
from pathlib import Path

from ..messages import some
from ..reading.checkpoint import read_json
from .copied_files import LICENSES


def check_place(target: Path, overwrite: bool) -> None:
    """Check that nothing is at `target`; with `overwrite`, a PLT or an empty folder may be.

    Raises:
        FileExistsError: something else is there.
    """
    if target.is_symlink():
        raise FileExistsError(f"{target} must be a folder's own name, got a link to {os.readlink(target)}.")
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise FileExistsError(f"{target} exists; `--overwrite` replaces it.")
    if not target.is_dir():
        raise FileExistsError(f"{target} must be a folder to be replaced, got a file.")
    names = sorted(os.listdir(target))
    if names and not holds_plt(target):
        raise FileExistsError(f"{target} must hold a PLT to be replaced, got a folder with {some(names)}.")


def holds_plt(folder: Path) -> bool:
    """Whether its `config.json` is that of a PLT."""
    try:
        return read_json(folder / "config.json").get("model_type") == "plt"
    except ValueError:
        return False


def check_apart(target: Path, source: Path, files: list[Path]) -> None:
    """Check that replacing the target deletes nothing that is read, and that it is not inside the source.

    Args:
        source: a folder; its files may be links.
        files: further files that are read.

    Raises:
        ValueError: the target is or holds something that is read, or is inside the source; or a link leads nowhere.
    """
    for path in (source, *source.iterdir(), *files):
        is_license = any(path.match(pattern) for pattern in LICENSES)  # whose copying says so
        if path.is_symlink() and not path.exists() and not is_license:
            raise ValueError(f"{path} must lead to a file, got a link to {os.readlink(path)}, where there is none.")
        if is_within(path, target):
            raise ValueError(f"The target must be apart from what is read, got {target}, which holds {path}.")
    if is_within(target, source):
        raise ValueError(f"The target must be outside of the source, got {target} in {source}.")


def is_within(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or something in it, after following links."""
    path, folder = follow(path), follow(folder)
    # a folder can be mounted in two places, or spelled in two ways
    return any(parent == folder or is_same(parent, folder) for parent in (path, *path.parents))


def follow(path: Path) -> Path:
    """Where a path leads; unlike `Path.resolve`, without an error of its own for a link to itself."""
    return Path(os.path.realpath(path))


def is_same(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


def leftovers(target: Path) -> list[Path]:
    """Temporary folders next to a target; a run that is still going has one, and one that was killed leaves one."""
    target = follow(target)
    names = os.listdir(target.parent) if target.parent.is_dir() else []
    pattern = rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}"
    return [target.parent / name for name in sorted(names) if re.fullmatch(pattern, name)]
