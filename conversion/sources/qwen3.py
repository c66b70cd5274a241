# SPDX-License-Identifier: Apache-2.0
"""Qwen3: a plain decoder that norms queries and keys."""

from typing import Any

from conversion_plt.fields import Fields, llama_fields
from conversion_plt.source import Source


def read_fields(fields: Fields) -> dict[str, Any]:
    fields.require("use_sliding_window", False)
    for name in ("sliding_window", "max_window_layers"):
        fields.take(name, None)  # of the window that is off
    return llama_fields(fields) | {
        "num_loops": 1,
        "attention_bias": fields.take("attention_bias", False),
        "qk_norm": True,
    }


SOURCE = Source(
    model_type="qwen3",
    title="Qwen3",
    becomes="a plain decoder, or a vanilla loop with `--loops`",
    read_fields=read_fields,
    reference_class="Qwen3ForCausalLM",
)
