# SPDX-License-Identifier: Apache-2.0
"""Nanbeige4.2: a vanilla loop under Llama's tensor names."""

from typing import Any

from ..reading.fields import VANILLA_LOOP, Fields, bias_fields, llama_fields
from ..source import Source


def read_fields(fields: Fields) -> dict[str, Any]:
    num_loops, loss_weights = fields.take("num_loops", int, 1), fields.take("loop_loss_weights", list[float], None)
    taken = llama_fields(fields)
    fields.require("kv_channels", taken["head_dim"], None)
    return (
        VANILLA_LOOP
        | taken
        | {
            "num_loops": len(loss_weights) + 1 if loss_weights else num_loops,
            "loop_norm": not fields.take("skip_loop_final_norm", bool, False),
            **bias_fields(fields),
        }
    )


SOURCE = Source(
    model_type="nanbeige",
    title="Nanbeige4.2",
    becomes="a vanilla loop",
    read_fields=read_fields,
)
