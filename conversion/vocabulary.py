# SPDX-License-Identifier: Apache-2.0
"""The ids of a vocabulary, checked before the tokenizers library makes a list as long as the highest one."""

from pathlib import Path

from .checkpoint import read_json
from .messages import named, shown

SPARE = 1000  # ids that may be free besides as many as there are tokens: added tokens take some


def check_vocabulary(folder: Path) -> None:
    """Check the ids in `vocab.json` and `tokenizer.json`, where they are.

    Raises:
        ValueError: an id is no count, or far beyond the number of tokens.
    """
    for file in (folder / "vocab.json", folder / "tokenizer.json"):
        content = read_json(file) if file.is_file() else {}
        if file.name == "tokenizer.json":
            model = content.get("model")
            content = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(content, dict):  # a list gives no ids
            check_ids(file, content)


def check_ids(file: Path, vocabulary: dict) -> None:
    most = 2 * len(vocabulary) + SPARE
    for token, index in vocabulary.items():
        if type(index) is not int or not 0 <= index < most:
            raise ValueError(
                f"{file} has {len(vocabulary)} tokens and must give ids from 0 to {most - 1}, got {shown(index)} for "
                f"{named(token)}."
            )
