# SPDX-License-Identifier: Apache-2.0
"""OLMoE: a plain decoder with experts, that norms queries and keys over all heads together."""

from typing import Any

from ..reading.experts import sparse_fields
from ..reading.fields import Fields, llama_fields
from ..source import PLAIN_DECODER, Source


def read_fields(fields: Fields) -> dict[str, Any]:
    fields.require("clip_qkv", None)
    taken = llama_fields(fields)
    return (
        taken
        | sparse_fields(fields, taken["intermediate_size"])
        | {
            "num_loops": 1,
            "attention_bias": fields.take("attention_bias", bool, False),
            "qk_norm": "whole",
            "norm_topk_prob": fields.take("norm_topk_prob", bool),
        }
    )


SOURCE = Source(
    model_type="olmoe",
    title="OLMoE",
    becomes=PLAIN_DECODER,
    read_fields=read_fields,
    reference_class="OlmoeForCausalLM",
)
