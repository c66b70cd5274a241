# SPDX-License-Identifier: Apache-2.0
"""The Python source that is predicted byte by byte: files of packages in pinned releases, the same on any day.

    python -m laboratory.tasks.harness.python_text

prints what is neither installed in its pinned release nor in `runs/text`, for `pip install --no-deps --target
runs/text`. `python_text.json` names every package with the hash of what it gives; a text that differs from that is
refused, so that new rows stand beside old ones.
"""

import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.version import Version

from training_plt.data.texts import python_files

PINNED = Path(__file__).with_suffix(".json")
FETCHED = Path("runs/text")  # where releases are put that are not installed
BYTES_OF_PACKAGE = 500_000  # at most, so that no package is most of the text
LIBRARY = "python"  # the name of the standard library among the packages


@dataclass(frozen=True)
class Package:
    """A release whose files are in the text.

    Attributes:
        split: `train` or `test`; packages are held out whole.
        sha256: of the documents that it gives, joined by zero bytes.
    """

    split: str
    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """As pip takes it; builds such as `+cpu` have the same Python files."""
        return f"{self.name}=={Version(self.version).public}"


@cache
def pinned() -> dict[str, Any]:
    """The file: `bytes` and `sha256` of each split, and the `packages`, in the order in which they are read."""
    return json.loads(PINNED.read_text(encoding="utf-8"))


def packages() -> list[Package]:
    return [Package(**package) for package in pinned()["packages"]]


def facts() -> dict[str, Any]:
    """The releases that the text is made of, for JSON; reads no file but the pinned one."""
    versions: dict[str, dict[str, str]] = {"train": {}, "test": {}}
    for package in packages():
        versions[package.split][package.name] = package.version
    return {"packages": versions, "bytes": pinned()["bytes"], "sha256": pinned()["sha256"]}


@cache
def read_documents() -> dict[str, list[bytes]]:
    """The documents of each split.

    Raises:
        ValueError: a package is not there in its pinned release, or its files are not those of the pin.
    """
    missing = [package.requirement for package in packages() if files_of(package) is None]
    if missing:
        raise ValueError(
            f"The text needs releases that are not installed: `pip install --no-deps --target {FETCHED} "
            f"{' '.join(missing)}`, as `make results` does."
        )
    documents: dict[str, list[bytes]] = {"train": [], "test": []}
    seen: set[bytes] = set()  # lines; of the test too, so that it repeats neither the training text nor itself
    for package in packages():
        kept = list(capped(new_documents(files_of(package) or [], seen), BYTES_OF_PACKAGE))
        found = hashlib.sha256(b"\0".join(kept)).hexdigest()
        if found != package.sha256:
            raise ValueError(
                f"The files of {package.name} {package.version} must be those of the pinned text, with the hash "
                f"{package.sha256[:12]}, got {found[:12]}: with them new rows would not stand beside the old ones."
            )
        documents[package.split] += kept
    return documents


def files_of(package: Package) -> list[Path] | None:
    """The Python files of a package; None if there is no such release.

    Raises:
        ValueError: it is the standard library, and another Python runs.
    """
    if package.name == LIBRARY:
        running = sys.version.split()[0]
        if running != package.version:
            raise ValueError(f"The text needs the library of Python {package.version}, this is Python {running}.")
        library = Path(sysconfig.get_paths()["stdlib"])
        return python_files(library.rglob("*.py"), library)
    for found in distributions(name=package.name, path=folders()):
        if Version(found.version).public == Version(package.version).public:
            return python_files(modules_of(found), Path(str(found.locate_file(""))))
    return None


def folders() -> list[str]:
    """The folders of packages: fetched ones, installed ones, and those that setuptools brings along."""
    # of each folder that Python imports from: an environment may borrow packages from another
    installed = [path for path in sys.path if Path(path).name == "site-packages"]
    return [str(FETCHED), *installed, *(f"{path}/setuptools/_vendor" for path in installed)]


def modules_of(package: Distribution) -> Iterator[Path]:
    return (Path(str(file.locate())) for file in package.files or [] if file.suffix == ".py")


def new_documents(files: Iterable[Path], seen: set[bytes]) -> Iterator[bytes]:
    """The files most of whose lines no earlier file had, which leaves out copies and what is nearly one."""
    for file in files:
        text = file.read_bytes()
        lines = {line.strip() for line in text.splitlines() if line.strip()}
        is_new = len(lines - seen) > len(lines) / 2
        seen |= lines
        if is_new:
            yield text


def capped(documents: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The first documents that have so many bytes together; the last one is cut."""
    for document in documents:
        if size <= 0:
            return
        yield document[:size]
        size -= len(document)


if __name__ == "__main__":
    print(*(package.requirement for package in packages() if files_of(package) is None))
