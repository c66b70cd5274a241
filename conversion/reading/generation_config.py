# SPDX-License-Identifier: Apache-2.0
"""The source's `generation_config.json`, which is copied byte for byte if transformers accepts it."""

from pathlib import Path

from transformers import GenerationConfig

from ..error_text import shown
from .checkpoint import read_json
from .kinds_of_values import KINDS, is_kind

FILE = "generation_config.json"
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_generation(folder: Path) -> None:
    """Check that transformers loads the generation settings of a folder, if there are any.

    Raises:
        ValueError: the file is not a JSON object, or transformers refuses the settings.
    """
    if not (folder / FILE).is_file():
        return
    settings = read_json(folder / FILE)
    for name in TOKENS:  # transformers checks them only when it generates
        kind, value = int | list[int], settings.get(name)
        if value is not None and not is_kind(value, kind):
            raise ValueError(f"`{name}` in {FILE} must be {KINDS[kind]}, got {shown(value)}.")
    try:
        GenerationConfig.from_dict(settings).validate()
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{FILE} must hold settings that transformers accepts, got: {error}") from error
