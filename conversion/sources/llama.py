# SPDX-License-Identifier: Apache-2.0
"""Llama: a plain decoder."""

from typing import Any

from conversion_plt.fields import Fields, llama_fields
from conversion_plt.source import Source


def read_fields(fields: Fields) -> dict[str, Any]:
    fields.take("pretraining_tp", 1)  # how matrices were split in training; transformers no longer reads it
    return llama_fields(fields) | {
        "num_loops": 1,
        "attention_bias": fields.take("attention_bias", False),
        "mlp_bias": fields.take("mlp_bias", False),
    }


SOURCE = Source(
    model_type="llama",
    title="Llama",
    becomes="a plain decoder, or a vanilla loop with `--loops`",
    read_fields=read_fields,
    dropped=(r"\.rotary_emb\.inv_freq$",),
    reference_class="LlamaForCausalLM",
)
