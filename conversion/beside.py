# SPDX-License-Identifier: Apache-2.0
"""Writing a folder beside its place, and moving it there when it is complete."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_beside(target: Path) -> Iterator[Path]:
    """A new folder that takes the target's place when the block ends well.

    However it ends, the new folder's own parent, which is there for what the work needs besides, goes with it.
    """
    target = Path(os.path.abspath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as work:
        new = Path(work) / "new"
        new.mkdir()
        yield new
        if target.exists():
            os.replace(target, Path(work) / "old")
        os.replace(new, target)
