# SPDX-License-Identifier: Apache-2.0
"""Mistral: a plain decoder; its sliding window must be off."""

from typing import Any

from ..reading.fields import Fields, llama_fields
from ..source import PLAIN_DECODER, Source


def read_fields(fields: Fields) -> dict[str, Any]:
    fields.require("sliding_window", None)
    return llama_fields(fields) | {"num_loops": 1}


SOURCE = Source(
    model_type="mistral",
    title="Mistral",
    becomes=PLAIN_DECODER,
    read_fields=read_fields,
    dropped=(r"\.rotary_emb\.inv_freq$",),
    reference_class="MistralForCausalLM",
)
