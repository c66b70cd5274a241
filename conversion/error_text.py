# SPDX-License-Identifier: Apache-2.0
"""Names, values and sizes in sentences for people: short and printable, whatever a file or a library says."""

import reprlib
from collections.abc import Iterable

LONGEST = 100  # characters of a name or a value
LONGEST_MESSAGE = 1000

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = LONGEST


def shown(value: object) -> str:
    """The `repr` of a value; a long one is shortened."""
    text = SHORT.repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def named(name: str) -> str:
    """A name in backticks."""
    return f"`{name}`" if len(name) <= LONGEST else f"`{name[: LONGEST - 3]}...`"


def some(names: Iterable[str]) -> str:
    """The first five names, and how many more there are."""
    names = list(names)
    listed = ", ".join(named(name) for name in names[:5]) or "none"
    return listed if len(names) <= 5 else f"{listed} and {len(names) - 5} more"


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks and other characters that move a terminal's cursor."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= LONGEST_MESSAGE else f"{text[: LONGEST_MESSAGE - 3]}..."


def first_line(error: BaseException) -> str:
    """What a library's error says first; further lines often give advice that does not fit."""
    return str(error).strip().partition("\n")[0]


def bytes_of(count: int) -> str:
    """A number of bytes in the largest unit of which there is at least one."""
    size, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{count} bytes" if units[0] == "bytes" else f"{size:.1f} {units[0]}"
