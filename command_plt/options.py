# SPDX-License-Identifier: Apache-2.0
"""How options are read: lists of values, and values that are refused with what was expected."""

from collections.abc import Callable, Iterable
from typing import Any

import typer
from typer.core import TyperCommand


class ListsCommand(TyperCommand):
    """A command whose lists take their values after one name, `--rows loop-2 plt-2`, or after several."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {name for param in self.params if param.multiple for name in param.opts}
        spread: list[str] = []
        name = None
        for arg in args:
            if arg.startswith("--"):
                name = arg if arg in lists else None
            elif name is not None and spread[-1] != name:
                spread.append(name)
            spread.append(arg)
        return super().parse_args(ctx, spread)


def reader(read: Callable[[str], Any], expected: str) -> Callable[[str], Any]:
    """What reads a value of an option; `read` raises `ValueError` or `KeyError` for what is not as expected."""

    def parse(text: str) -> Any:
        try:
            return read(text)
        except (ValueError, KeyError):
            raise typer.BadParameter(f"must be {expected}, got {text!r}") from None

    return parse


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    return reader({name: name for name in names}.__getitem__, f"one of {', '.join(names)}")


def at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


positive = reader(at_least_one, "an integer of at least 1")
integer = reader(int, "an integer")
number = reader(float, "a number")
