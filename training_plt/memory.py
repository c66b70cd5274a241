# SPDX-License-Identifier: Apache-2.0
"""How many bytes a step of training needs on each device, computed.

D hidden, F intermediate, Q and K all query and key heads, H query heads, W window, N layers, L loops, V vocabulary; E
experts of a sparse layer.
"""

from dataclasses import dataclass

import torch

from configuration_plt import PLTConfig, Stage
from modeling_plt import PLTForCausalLM
from modeling_plt.experts_plt import PLTSparseMoeBlock


@dataclass
class Training:
    """How a model is trained.

    Attributes:
        tokens: of one batch on one device, entries times block.
        bf16: autocast, or else float32 throughout.
        checkpointing: layers keep their input only, and are computed again in the backward.
        shards: devices among which weights, gradients and states are cut; each then gathers all weights in a forward.
    """

    tokens: int
    bf16: bool = True
    checkpointing: bool = False
    shards: int = 1


def bytes_of_step(config: PLTConfig, training: Training) -> dict[str, float]:
    """Bytes on one device, by what they are for, and their sum as `total`.

    Activations are those of the CPU's kernels. Their gradients are left out, a twentieth at most, and what the
    optimizer needs while it works, because by then activations are gone. With checkpointing the total is too high, by
    up to three tenths: logits and the layer that is computed again are not there at once. Experts are those of
    `grouped_mm`, transformers' default, which autocast leaves in float32.
    """
    with torch.device("meta"):
        model = PLTForCausalLM(config)
    weights, size = model.num_parameters(), 2 if training.bf16 else 4
    cast = weights if training.shards > 1 else weights - weights_of_experts(model)
    parts = {
        "weights": 4 * weights / training.shards,
        "gradients": 4 * weights / training.shards,
        "AdamW's states": 8 * weights / training.shards,
        # what the layers multiply with: their casts, or what was gathered of the shards
        "casts": size * cast if training.bf16 or training.shards > 1 else 0,
        "activations": training.tokens * activations(config, training),
        # logits, the same in float32, their log-softmax; then the gradients of the first two
        "logits": training.tokens * config.vocab_size * (2 * size + 12 if training.bf16 else 12),
    }
    return parts | {"total": sum(parts.values())}


def weights_of_experts(model: PLTForCausalLM) -> int:
    blocks = [module for module in model.modules() if isinstance(module, PLTSparseMoeBlock)]
    return sum(parameter.numel() for block in blocks for parameter in block.experts.parameters())


def activations(config: PLTConfig, training: Training) -> float:
    """What the layers of all loops keep for the backward, in bytes per token."""
    kept, greatest = 0.0, 0.0
    for stage in config.stages:
        for layer_idx in stage.layers:
            first, later = bytes_of_layer(config, stage, layer_idx, training.bf16)
            of_layer = first + len(stage.loops[1:]) * later
            if training.checkpointing:  # the input of each layer in each loop, and the shared KV
                shared = 2 * (2 if training.bf16 else 4) * key_size(config)
                of_layer = 4 * config.hidden_size * len(stage.loops) + shared
                # the layer that is computed again, with its gradients
                greatest = max(greatest, first, later if stage.loops[1:] else 0)
            kept += of_layer
    return kept + 1.5 * greatest


def bytes_of_layer(config: PLTConfig, stage: Stage, layer_idx: int, bf16: bool) -> tuple[float, float]:
    """Of one token in the first loop and in a later one: residuals and norms are float32, products what they are in.

    Autocast makes a copy of its input for each of the projections.
    """
    assert config.head_dim is not None  # filled in
    d, window = config.hidden_size, config.sliding_window
    q, k = config.num_attention_heads * config.head_dim, key_size(config)
    size, copies = (2, 3) if bf16 else (4, 1)  # of the input of query, key and value
    mlp = bytes_of_experts(config, bf16) if config.is_sparse(layer_idx) else bytes_of_mlp(config, bf16)
    first = 16 * d + size * (copies * d + 2 * q + 2 * k) + mlp
    if stage.later_see == "all":
        return first, first
    if stage.later_see == "nothing":
        return first, first - size * 2 * k  # the keys and values are the first loop's
    # both attentions and their gate; each block of W queries has keys and values of 2 W - 1 positions, for all heads
    windows = 2 * q * (2 * window - 1) / window + 2 * window
    later = 20 * d + size * ((1 + copies) * d + 7 * q + k + windows) + mlp
    return first, later


def bytes_of_mlp(config: PLTConfig, bf16: bool) -> float:
    """Of one token: what goes into gate and up, both, the activated gate and its product with up."""
    size, copies = (2, 2) if bf16 else (4, 1)
    return size * (copies * config.hidden_size + 4 * config.intermediate_size)


def bytes_of_experts(config: PLTConfig, bf16: bool) -> float:
    """Of one token: the same for each expert that it is sent to, with its input and output; router; shared expert."""
    assert config.num_experts_per_tok is not None and config.moe_intermediate_size is not None  # checked
    d, chosen = config.hidden_size, config.num_experts_per_tok
    size = 2 if bf16 else 4
    kept = 4 * chosen * (2 * d + 4 * config.moe_intermediate_size)
    # the router's input, logits and, in float32, their softmax; weights and five indices of what it chose
    kept += size * d + (size + 4) * config.num_experts + (size + 5 * 8) * chosen
    if config.shared_expert_intermediate_size is not None:
        kept += size * ((2 if bf16 else 0) * d + 4 * config.shared_expert_intermediate_size)
        kept += size * (2 if bf16 else 1) * d if config.shared_expert_gate else 0  # its input's copy, what it weighs
    return kept


def key_size(config: PLTConfig) -> int:
    assert config.num_key_value_heads is not None and config.head_dim is not None  # filled in
    return config.num_key_value_heads * config.head_dim
