# SPDX-License-Identifier: Apache-2.0
"""Kinds of values in a JSON file, written as type annotations."""

import math
from types import GenericAlias, UnionType
from typing import Any

Kind = type | GenericAlias | UnionType
KINDS: dict[Kind, str] = {
    bool: "true or false",
    int: "an integer of 64 bits",
    float: "a finite number of 64 bits",
    str: "text",
    dict: "an object",
    list[str]: "a list of texts",
    list[int]: "a list of integers",
    list[float]: "a list of numbers",
    int | list[int]: "an integer or a list of integers",
    float | int | None: "a finite number of 64 bits",
}


def is_kind(value: Any, kind: Kind) -> bool:
    """Whether a value is of one of the `KINDS`: true is not a number, and an integer is also a float."""
    if isinstance(kind, UnionType):
        return any(is_kind(value, choice) for choice in kind.__args__)
    if isinstance(kind, GenericAlias):
        return isinstance(value, list) and all(is_kind(item, kind.__args__[0]) for item in value)
    if kind is int:
        return type(value) is int and -(2**63) <= value < 2**63
    if kind is float:
        return is_kind(value, int) or type(value) is float and math.isfinite(value)
    return isinstance(value, kind)


def equals(value: Any, other: Any) -> bool:
    """Whether two values are the same; true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
