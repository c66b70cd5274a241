# SPDX-License-Identifier: Apache-2.0
"""Qwen3-MoE: a plain decoder with experts, that norms queries and keys."""

from typing import Any

from ..reading.experts import qwen_expert_fields
from ..reading.fields import Fields, llama_fields, refuse_sliding_window
from ..source import PLAIN_DECODER, Source


def read_fields(fields: Fields) -> dict[str, Any]:
    refuse_sliding_window(fields)
    return (
        llama_fields(fields)
        | qwen_expert_fields(fields)
        | {
            "num_loops": 1,
            "attention_bias": fields.take("attention_bias", bool, False),
            "qk_norm": "head",
        }
    )


SOURCE = Source(
    model_type="qwen3_moe",
    title="Qwen3-MoE",
    becomes=PLAIN_DECODER,
    read_fields=read_fields,
    reference_class="Qwen3MoeForCausalLM",
)
