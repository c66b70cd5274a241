# SPDX-License-Identifier: Apache-2.0
"""Fields of `PLTConfig` as a command line gives them."""

import ast
from difflib import get_close_matches
from typing import Any

from .configuration_plt import PLTConfig


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["num_loops=3", "loop_attention=own"]` -> values as Python reads them, or else as strings.

    Raises:
        ValueError: one has no `=`, or names no field.
    """
    fields = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator or name not in PLTConfig.__dataclass_fields__:
            near = get_close_matches(name, PLTConfig.__dataclass_fields__, n=1)
            meant = f"; is `{near[0]}` meant?" if near else ""
            raise ValueError(f"takes FIELD=VALUE with a field of PLTConfig, got {assignment!r}{meant}")
        try:
            fields[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            fields[name] = value
    return fields
