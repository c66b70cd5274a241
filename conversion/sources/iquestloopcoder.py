# SPDX-License-Identifier: Apache-2.0
"""IQuest-Coder Loop: shared KV and a gated window, but no shift and no norm between loops."""

from typing import Any

from ..reading.fields import VANILLA_LOOP, Fields, bias_fields, llama_fields
from ..source import Source


def read_fields(fields: Fields) -> dict[str, Any]:
    return (
        VANILLA_LOOP
        | llama_fields(fields)
        | {
            "num_loops": fields.take("loop_num", int),
            "loop_attention": "gated_window",
            "sliding_window": fields.take("loop_window_size", int),  # theirs counts the token itself, as ours
            "gate_input": "query",
            "loop_norm": False,
            **bias_fields(fields),
        }
    )


SOURCE = Source(
    model_type="iquestloopcoder",
    title="IQuest-Coder Loop",
    becomes="a loop without shift; shared KV and a window, gated by the query",
    read_fields=read_fields,
    renames=((r"^model\.gate_projections\.(\d+)\.", r"model.layers.\1.self_attn.plt_gate."),),
)
