# SPDX-License-Identifier: Apache-2.0
"""Qwen2 and Qwen2.5: a plain decoder with biases on queries, keys and values."""

from typing import Any

from ..reading.fields import Fields, llama_fields, refuse_sliding_window
from ..source import PLAIN_DECODER, Source


def read_fields(fields: Fields) -> dict[str, Any]:
    refuse_sliding_window(fields)
    return llama_fields(fields) | {"num_loops": 1, "attention_bias": True, "attention_output_bias": False}


SOURCE = Source(
    model_type="qwen2",
    title="Qwen2, Qwen2.5",
    becomes=PLAIN_DECODER,
    read_fields=read_fields,
    reference_class="Qwen2ForCausalLM",
)
