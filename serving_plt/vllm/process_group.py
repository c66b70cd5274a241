# SPDX-License-Identifier: Apache-2.0
"""A process that is gone at the end, with all that it has started."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

GRACE = 20  # seconds


@contextlib.contextmanager
def process_group(command: Sequence[object], log: Path) -> Iterator[subprocess.Popen]:
    """Start a command whose output goes to a file; at the end, whatever happens, its group is ended."""
    with log.open("w") as output:
        # a group of its own: a server starts further processes
        process = subprocess.Popen(
            [*map(str, command)], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """Ask the group to end; after `GRACE` seconds, and for what is left of it, do not ask."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)
