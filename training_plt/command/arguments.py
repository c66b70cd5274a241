# SPDX-License-Identifier: Apache-2.0
"""The arguments of the training commands: dataclasses, from flags, or from one YAML file and flags.

TRL's parser reads such a file too, but as defaults, which argparse does not check: a wrong choice, a number that is no
integer, or one word in place of a list come through.
"""

import json
import sys
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from conversion_plt.error_text import one_line


def parse(
    command: str, description: str | None, classes: tuple[Any, ...], arguments: list[str] | None = None
) -> tuple[Any, ...]:
    """One instance of each dataclass; a wrong argument ends the program with one sentence.

    Args:
        command: its name, for `--help`.
        description: of the command, for `--help`.
        classes: dataclasses such as `TrainingArguments`; no two have a field of the same name.
        arguments: flags, after an optional YAML file of fields and values, which flags override; default: `sys.argv`.
    """
    parser = Parser(list(classes), prog=command, description=description, formatter_class=Formatter)
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments and arguments[0].endswith((".yaml", ".yml")):
            arguments = [*read_flags(Path(arguments[0])), *arguments[1:]]
        *parsed, others = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    except (OSError, ValueError) as error:
        parser.error(one_line(error))
    if others:
        near = get_close_matches(others[0], parser.flags(), n=1, cutoff=0.8)
        parser.error(f"{others[0]} is no argument of this command" + (f"; is {near[0]} meant?" if near else "."))
    return tuple(parsed)


class Formatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows defaults, and the lines of the description as they are, so that commands can be copied."""


class Parser(HfArgumentParser):
    """A parser whose errors are one line: there are a hundred lines of usage."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2)

    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]


@contextmanager
def refusing() -> Iterator[None]:
    """Ends the program as a wrong argument does, if what is inside cannot use its input; training is not inside."""
    try:
        yield
    except (OSError, ValueError, NotImplementedError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def read_flags(path: Path) -> list[str]:
    """The fields of a YAML file as flags, so that they are read as flags are.

    Raises:
        ValueError: the file holds no fields, or one without a value.
    """
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} must be YAML, got: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold fields and values, got {type(fields).__name__}.")
    empty = [name for name, value in fields.items() if value is None]
    if empty:
        raise ValueError(f"{path} must give every field a value, got none for `{empty[0]}`.")
    return [word for name, value in fields.items() for word in (f"--{name}", *words(value))]


def words(value: Any) -> list[str]:
    """A value as the command line spells it."""
    if isinstance(value, list):
        return [str(item) for item in value]
    return [json.dumps(value) if isinstance(value, dict) else str(value)]
