# SPDX-License-Identifier: Apache-2.0
"""Mixtral: a plain decoder with experts, under names of its own."""

from typing import Any

from ..reading.experts import sparse_fields
from ..reading.fields import Fields, llama_fields
from ..source import PLAIN_DECODER, Source


def read_fields(fields: Fields) -> dict[str, Any]:
    fields.require("sliding_window", None)
    fields.require("router_jitter_noise", 0.0)
    taken = llama_fields(fields)
    return (
        taken
        | sparse_fields(fields, taken["intermediate_size"], "num_local_experts")
        | {
            "num_loops": 1,
            "norm_topk_prob": True,
        }
    )


SOURCE = Source(
    model_type="mixtral",
    title="Mixtral",
    becomes=PLAIN_DECODER,
    read_fields=read_fields,
    renames=(
        (r"\.block_sparse_moe\.", ".mlp."),
        (r"(\.experts\.\d+)\.w1\.", r"\1.gate_proj."),
        (r"(\.experts\.\d+)\.w2\.", r"\1.down_proj."),
        (r"(\.experts\.\d+)\.w3\.", r"\1.up_proj."),
    ),
    reference_class="MixtralForCausalLM",
)
