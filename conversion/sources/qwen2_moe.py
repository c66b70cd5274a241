# SPDX-License-Identifier: Apache-2.0
"""Qwen1.5-MoE and Qwen2-MoE: a plain decoder with experts, one of which every token has."""

from typing import Any

from ..reading.experts import expert_fields, sparse_layer_fields
from ..reading.fields import Fields, llama_fields, refuse_sliding_window
from ..source import PLAIN_DECODER, Source


def read_fields(fields: Fields) -> dict[str, Any]:
    refuse_sliding_window(fields)
    return (
        llama_fields(fields)
        | expert_fields(fields)
        | sparse_layer_fields(fields)
        | {
            "num_loops": 1,
            "attention_bias": fields.take("qkv_bias", bool, True),
            "attention_output_bias": False,
            "moe_intermediate_size": fields.take("moe_intermediate_size", int),
            "norm_topk_prob": fields.take("norm_topk_prob", bool),
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
