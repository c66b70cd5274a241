# SPDX-License-Identifier: Apache-2.0
"""A line of the table that `check_on_gpu` writes."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

EQUAL, DIFFERS, MEASURED = "equal", "differs", "measured"
FAILED, DID_NOT_FIT, MISSING = "failed", "did not fit", "not installed"
TOO_LARGE = ("OutOfMemoryError", "TooLittleRoom")  # errors of torch and of the engine, which are not imported here
WRONG = (DIFFERS, FAILED)  # what makes the command end with 1


@dataclass(frozen=True)
class Row:
    """The result of a check.

    Attributes:
        check: the name of the check.
        result: one of the words above.
        figures: numbers and texts by their names.
    """

    check: str
    result: str
    figures: Mapping[str, float | int | str] = field(default_factory=dict)


def tried(check: str, function: Callable[[], Row]) -> Row:
    """The row that a function makes; where it raises, one that says so, and other rows go on."""
    try:
        return function()
    except Exception as error:
        return failed(check, error)


def failed(check: str, error: Exception) -> Row:
    """A row with the last line of an error; all of it goes to the part's log."""
    traceback.print_exception(error)
    is_memory = type(error).__name__ in TOO_LARGE
    last = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    return Row(check, DID_NOT_FIT if is_memory else FAILED, {"error": last})
