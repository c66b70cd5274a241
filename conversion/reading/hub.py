# SPDX-License-Identifier: Apache-2.0
"""Finding a source: a local folder, or a repository on the hub, from which only data files are downloaded."""

import os
import re
from pathlib import Path

from huggingface_hub import snapshot_download

from ..target.copied_files import LICENSES

DATA = [
    "*.json",
    "*.jinja",
    "*.model",
    "merges.txt",
    "vocab.txt",
    "*.tiktoken",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
    "README.md",
]
CODE = ["*.py"]


def find_folder(source: str, revision: str | None, weights: list[str]) -> Path:
    """The folder of a source, downloaded first if it is a hub id.

    Args:
        source: a folder, or `owner/name` on the hub.
        revision: branch, tag or commit on the hub.
        weights: patterns of the weight files that are wanted.

    Raises:
        ValueError: it is neither, it is a folder and a revision is given, or it holds an adapter without its model or
            a link to nowhere.
    """
    folder = find_local(source, revision) or download(source, revision, weights)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            "SOURCE must hold a whole model, got an adapter (`adapter_config.json`): load it with PEFT, and save what "
            "`merge_and_unload()` returns."
        )
    check_links(folder)
    return folder


def check_links(folder: Path) -> None:
    """ValueError if a link leads to nothing, which would count as a file that is not there; a license may."""
    for path in folder.iterdir():
        is_license = any(path.match(pattern) for pattern in LICENSES)  # whose copying says so
        if path.is_symlink() and not path.exists() and not is_license:
            raise ValueError(f"{path} must lead to a file, got a link to {os.readlink(path)}, where there is none.")


def find_local(source: str, revision: str | None) -> Path | None:
    """The source, if it is a folder."""
    if Path(source).is_dir():
        if revision is not None:
            raise ValueError(f"`--revision` is for hub ids, {source!r} is a folder.")
        return Path(source)
    return None


def download(source: str, revision: str | None, weights: list[str]) -> Path:
    """The data files of a repository on the hub."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith("."):
        raise ValueError(f"SOURCE must be a folder or a hub id (owner/name), got {source!r}.")
    return Path(snapshot_download(source, revision=revision, allow_patterns=DATA + weights, ignore_patterns=CODE))
