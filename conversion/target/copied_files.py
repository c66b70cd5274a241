# SPDX-License-Identifier: Apache-2.0
"""Small files that travel with a model unchanged: generation settings and licenses."""

import shutil
from pathlib import Path

from ..error_text import bytes_of
from ..reading.generation_config import FILE

LICENSES = ("LICENSE*", "NOTICE*", "USE_POLICY*")
LARGEST_LICENSE = 10_000_000  # bytes


def copy_belongings(source: Path, target: Path) -> list[str]:
    """Copy the files; returns sentences about licenses that were left out."""
    if (source / FILE).is_file():
        shutil.copyfile(source / FILE, target / FILE)
    sentences = []
    for path in sorted(path for pattern in LICENSES for path in source.glob(pattern)):
        if reason := why_not_copied(path, source):
            sentences.append(f"`{path.name}` was not copied: it is {reason}.")
        else:
            shutil.copyfile(path, target / path.name)
    return sentences


def why_not_copied(path: Path, source: Path) -> str | None:
    """Why a license is not copied, if there is a reason: the file is passed on unread."""
    if not path.is_file():
        return "not a file"
    if not path.resolve().is_relative_to(home(source)):
        return f"a link out of the source, to {path.resolve()}"
    size = path.stat().st_size
    return f"of {bytes_of(size)}, more than {bytes_of(LARGEST_LICENSE)}" if size > LARGEST_LICENSE else None


def home(source: Path) -> Path:
    """The folder that holds a source's files: its own, or in the hub's cache one above, with the blobs it links to."""
    source = source.resolve()
    return source.parent.parent if source.parent.name == "snapshots" else source
