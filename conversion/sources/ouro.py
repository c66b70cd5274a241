# SPDX-License-Identifier: Apache-2.0
"""Ouro: a vanilla loop of layers with four norms; the last loop is read out."""

from typing import Any

from ..reading.fields import VANILLA_LOOP, Fields, llama_fields, refuse_sliding_window
from ..source import Source


def read_fields(fields: Fields) -> dict[str, Any]:
    num_loops = fields.take("total_ut_steps", int)
    # which loop is read out: the first whose cumulative exit probability reaches the threshold, or this one
    fields.require("early_exit_threshold", 1.0, None)
    fields.require("early_exit_step", None, num_loops - 1)
    fields.require("sliding_window", None)
    refuse_sliding_window(fields)
    return (
        VANILLA_LOOP
        | llama_fields(fields)
        | {
            "num_loops": num_loops,
            "loop_norm": True,
            "norm_placement": "sandwich",
        }
    )


SOURCE = Source(
    model_type="ouro",
    title="Ouro",
    becomes="a vanilla loop with four norms per layer; the last loop is read out",
    read_fields=read_fields,
    dropped=(r"^model\.early_exit_gate\.",),
    notes=(
        "The source's early-exit gate, which chooses the loop that is read out, was dropped: the last loop always is. "
        "The published exit threshold of 1.0 reads the last loop too, unless rounding in bfloat16 ends earlier.",
    ),
)
