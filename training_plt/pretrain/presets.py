# SPDX-License-Identifier: Apache-2.0
"""Shapes of models to train: fields of `PLTConfig`, by name or from a JSON file."""

import json
from pathlib import Path
from typing import Any

TINY: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "sliding_window": 16,
    "hidden_scale": 0.05,
    "initializer_range": 0.06,
    "tie_word_embeddings": True,
}
PRESETS: dict[str, dict[str, Any]] = {
    # minutes on a CPU
    "tiny": TINY,
    # the same with 8 experts, 2 for each token, which together are as wide as its MLP
    "tiny-moe": TINY
    | {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 192,
        "norm_topk_prob": True,
        "router_aux_loss_coef": 0.01,
    },
    # the dense model of arXiv 2510.24824; its MLP of 16384 is read as 8192 each for the gate and the up projection,
    # because three matrices of 16384 would make 1.8B without embeddings; the vocabulary is not published
    "plt-1.2b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "sliding_window": 64,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
    # the open mixture of experts of arXiv 2510.24824, OLMoE (arXiv 2409.02060): 6.9B parameters, 1.3B of them active
    "olmoe-1b-7b": {
        "vocab_size": 50304,
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 4096,
        "sliding_window": 64,
        "rms_norm_eps": 1e-5,
        "qk_norm": "whole",
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1024,
        "router_aux_loss_coef": 0.01,
    },
    # arXiv 2606.18023; a published window of 64 is 65 keys with the current token
    "loopcoder-v2-7b": {
        "vocab_size": 76800,
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_hidden_layers": 14,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "sliding_window": 65,
        "embedding_scale": 0.707,
        "hidden_scale": 0.053,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
}


def read_fields(preset: str) -> dict[str, Any]:
    """Fields of a preset, or of a JSON file.

    Raises:
        ValueError: there is no such preset or file, or it holds no fields.
    """
    if preset in PRESETS:
        return PRESETS[preset]
    path = Path(preset)
    if not path.is_file():
        raise ValueError(f"`--preset` must be a JSON file or one of {', '.join(PRESETS)}, got {preset}.")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`--preset` must be a JSON file, got {preset}: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"`--preset` must be a JSON object of fields, got {type(fields).__name__} in {preset}.")
    return fields
