# SPDX-License-Identifier: Apache-2.0
"""Qwen1.5-MoE and Qwen2-MoE: a plain decoder with experts, one of which every token has."""

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
            "attention_bias": fields.take("qkv_bias", bool, True),
            "attention_output_bias": False,
            "shared_expert_intermediate_size": fields.take("shared_expert_intermediate_size", int),
        }
    )


SOURCE = Source(
    model_type="qwen2_moe",
    title="Qwen1.5-MoE, Qwen2-MoE",
    becomes=PLAIN_DECODER,
    read_fields=read_fields,
    reference_class="Qwen2MoeForCausalLM",
)
