# SPDX-License-Identifier: Apache-2.0
"""How many bytes a step of training needs on each device, computed.

D hidden, F intermediate, Q and K all query and key heads, H query heads, W window, N layers, L loops, V vocabulary.
"""

from dataclasses import dataclass

import torch

from configuration_plt import PLTConfig, Stage
from modeling_plt import PLTForCausalLM


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
    up to three tenths: logits and the layer that is computed again are not there at once.

    Raises:
        NotImplementedError: the model has experts, of whose activations nothing was measured.
    """
    if config.num_experts > 0:
        raise NotImplementedError(f"Memory is computed of models without experts, got {config.num_experts}.")
    with torch.device("meta"):
        weights = PLTForCausalLM(config).num_parameters()
    size = 2 if training.bf16 else 4
    parts = {
        "weights": 4 * weights / training.shards,
        "gradients": 4 * weights / training.shards,
        "AdamW's states": 8 * weights / training.shards,
        # what the layers multiply with: their casts, or what was gathered of the shards
        "casts": size * weights if training.bf16 or training.shards > 1 else 0,
        "activations": training.tokens * activations(config, training),
        # logits, the same in float32, their log-softmax; then the gradients of the first two
        "logits": training.tokens * config.vocab_size * (2 * size + 12 if training.bf16 else 12),
    }
    return parts | {"total": sum(parts.values())}


def activations(config: PLTConfig, training: Training) -> float:
    """What the layers of all loops keep for the backward, in bytes per token."""
    kept, greatest = 0.0, 0.0
    for stage in config.stages:
        first, later = bytes_of_layer(config, stage, training.bf16)
        of_layer = first + len(stage.loops[1:]) * later
        if training.checkpointing:  # the input of each layer in each loop, and the shared KV
            of_layer = 4 * config.hidden_size * len(stage.loops) + 2 * (2 if training.bf16 else 4) * key_size(config)
            # the layer that is computed again, with its gradients
            greatest = max(greatest, first, later if stage.loops[1:] else 0)
        kept += len(stage.layers) * of_layer
    return kept + 1.5 * greatest


def bytes_of_layer(config: PLTConfig, stage: Stage, bf16: bool) -> tuple[float, float]:
    """Of one token in the first loop and in a later one: residuals and norms are float32, products what they are in.

    Autocast makes a copy of its input for each of the projections.
    """
    assert config.head_dim is not None  # filled in
    d, f, window = config.hidden_size, config.intermediate_size, config.sliding_window
    q, k = config.num_attention_heads * config.head_dim, key_size(config)
    size, casts = (2, 3) if bf16 else (4, 0)
    first = 16 * d + size * ((2 + casts) * d + 2 * q + 2 * k + 4 * f)
    if stage.later_see == "all":
        return first, first
    if stage.later_see == "nothing":
        return first, first - size * 2 * k  # the keys and values are the first loop's
    # both attentions and their gate; each block of W queries has keys and values of 2 W - 1 positions, for all heads
    windows = 2 * q * (2 * window - 1) / window + 2 * window
    later = 20 * d + size * ((3 + casts) * d + 7 * q + k + windows + 4 * f)
    return first, later


def key_size(config: PLTConfig) -> int:
    assert config.num_key_value_heads is not None and config.head_dim is not None  # filled in
    return config.num_key_value_heads * config.head_dim
