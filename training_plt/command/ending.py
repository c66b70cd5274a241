# SPDX-License-Identifier: Apache-2.0
"""How a command ends: what it made, where that lies, and what to do next."""

from pathlib import Path


def say_what_was_made(made: str, folder: str | Path, then: str) -> None:
    """Print three lines.

    Args:
        made: what lies in `folder`, with the number that says how good it is.
        folder: where it lies.
        then: a command, or a sentence with one.
    """
    print(f"Made:  {made}")
    print(f"Where: {folder}")
    print(f"Next:  {then}")
