# SPDX-License-Identifier: Apache-2.0
"""The source's `generation_config.json`, which goes to the target byte for byte."""

from pathlib import Path

from transformers import GenerationConfig

from .checkpoint import read_json
from .kinds import KINDS, is_kind
from .messages import shown

FILE = "generation_config.json"
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_generation(folder: Path) -> None:
    """Check that transformers loads the generation settings of a folder, if it has some.

    Raises:
        ValueError: they are no JSON object, or transformers refuses them.
    """
    if not (folder / FILE).is_file():
        return
    settings = read_json(folder / FILE)
    for name in TOKENS:  # transformers looks at them when it generates
        kind, value = int | list[int], settings.get(name)
        if value is not None and not is_kind(value, kind):
            raise ValueError(f"`{name}` in {FILE} must be {KINDS[kind]}, got {shown(value)}.")
    try:
        GenerationConfig.from_dict(settings).validate()
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{FILE} must hold settings that transformers accepts, got: {error}") from error
