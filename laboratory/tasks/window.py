# SPDX-License-Identifier: Apache-2.0
"""The worth of the window and the gate of PLT-2, on Python source."""

from dataclasses import replace

from .harness.definition import Cell
from .language import EXPERIMENT as LANGUAGE

EXPERIMENT = replace(
    LANGUAGE,
    name="window",
    question="What are the window and the gate of PLT-2 worth?",
    cells=(
        Cell("plain"),
        Cell("shared-2"),
        *(Cell("plt-2", {"sliding_window": window}) for window in (8, 1, 64)),
        Cell("plt-2", {"sliding_window": 8}, frozen="plt_gate"),
    ),
)
