# SPDX-License-Identifier: Apache-2.0
"""The ids of a vocabulary, checked before the tokenizers library allocates a list up to the highest one."""

from pathlib import Path

from ..error_text import named, shown
from ..reading.checkpoint import read_json

SPARE = 1000  # unused ids that are always allowed, for added tokens; further ones up to the number of tokens


def check_vocabulary(folder: Path) -> None:
    """Check the ids in `vocab.json` and `tokenizer.json`, if they exist.

    Raises:
        ValueError: an id is not a count, or is far beyond the number of tokens.
    """
    for file in (folder / "vocab.json", folder / "tokenizer.json"):
        content: object = read_json(file) if file.is_file() else {}
        if file.name == "tokenizer.json":
            for name in ("model", "vocab"):
                content = content.get(name) if isinstance(content, dict) else None
        if isinstance(content, dict):  # a list has no ids of its own
            check_ids(file, content)


def check_ids(file: Path, vocabulary: dict) -> None:
    most = 2 * len(vocabulary) + SPARE
    for token, index in vocabulary.items():
        if type(index) is not int or not 0 <= index < most:
            raise ValueError(
                f"{file} has {len(vocabulary)} tokens and must give ids from 0 to {most - 1}, got {shown(index)} for "
                f"{named(token)}."
            )
