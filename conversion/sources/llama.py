# SPDX-License-Identifier: Apache-2.0
"""Llama: a plain decoder."""

from typing import Any

from ..reading.fields import Fields, bias_fields, llama_fields
from ..source import PLAIN_DECODER, Source


def read_fields(fields: Fields) -> dict[str, Any]:
    fields.take("pretraining_tp", int, None)  # how training split matrices; transformers ignores it
    return llama_fields(fields) | {
        "num_loops": 1,
        **bias_fields(fields),
    }


SOURCE = Source(
    model_type="llama",
    title="Llama",
    becomes=PLAIN_DECODER,
    read_fields=read_fields,
    dropped=(r"\.rotary_emb\.inv_freq$",),
    reference_class="LlamaForCausalLM",
)
