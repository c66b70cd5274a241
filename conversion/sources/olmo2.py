# SPDX-License-Identifier: Apache-2.0
"""OLMo-2: a plain decoder that norms what attention and MLP put out, and queries and keys over all heads together."""

from typing import Any

from ..reading.fields import Fields, llama_fields
from ..source import PLAIN_DECODER, Source

# the norms' names are those of a PLT for other places
OUTPUT_NORMS = (
    (r"\.post_attention_layernorm\.", ".input_layernorm_2."),
    (r"\.post_feedforward_layernorm\.", ".post_attention_layernorm_2."),
)


def read_fields(fields: Fields) -> dict[str, Any]:
    return llama_fields(fields) | {
        "num_loops": 1,
        "attention_bias": fields.take("attention_bias", bool, False),
        "qk_norm": "whole",
        "norm_placement": "output",
    }


SOURCE = Source(
    model_type="olmo2",
    title="OLMo-2",
    becomes=PLAIN_DECODER,
    read_fields=read_fields,
    renames=OUTPUT_NORMS,
    reference_class="Olmo2ForCausalLM",
)
