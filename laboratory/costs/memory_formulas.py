# SPDX-License-Identifier: Apache-2.0
"""Bytes that a phase takes, by formula, in one sequence."""

from itertools import pairwise

from transformers.configuration_utils import PreTrainedConfig

from configuration_plt import PLTConfig
from modeling_plt.passes_plt import schedule
from training_plt.memory import bytes_of_layer

from .cache_bytes import theory

SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")


def as_plt(config: PreTrainedConfig) -> PLTConfig:
    """A config with the sizes of a Llama, or the PLT itself."""
    if isinstance(config, PLTConfig):
        return config
    names = (*SIZES, "num_hidden_layers")
    return PLTConfig(num_loops=1, **{name: getattr(config, name) for name in names})


def prefill(config: PreTrainedConfig, num_tokens: int, itemsize: int) -> int:
    """Embeddings, the state of the loop before, the cache so far, and a layer whose MLP works.

    Over Q positions an MLP holds its activated gate, the up projection and their product, 3 Q F numbers, beside the
    sum of input and attention and its norm. A PLT's layer also keeps the norm of its input, and the attention's
    output. What a sparse layer holds: `of_experts`.
    """
    is_plt = isinstance(config, PLTConfig)
    plt = as_plt(config)
    per_layer = 2 * num_tokens * config.num_key_value_heads * config.head_dim
    live, cached = [], 0
    for stage, loops, spans in schedule(plt, num_tokens, num_outputs=1, in_turn=True):
        outside = (1 + (loops.start > 0)) * num_tokens * config.hidden_size
        for layer_idx, (entering, leaving) in zip(stage.layers, pairwise(spans), strict=True):
            mlp = of_experts(plt) if plt.is_sparse(layer_idx) else 3 * config.intermediate_size
            in_layer = leaving * (mlp + (2 + is_plt) * config.hidden_size)
            in_layer += entering * (1 + is_plt) * config.hidden_size
            cached += len(stage.full_loops(loops))
            live.append(outside + cached * per_layer + in_layer)
    return itemsize * max(live)


def of_experts(config: PLTConfig) -> int:
    """Numbers that the experts of a position hold: their inputs D, with gate and up 2 F, the activated gate, and its
    product with up; or, when those are gone, with the outputs D, the same weighed, and again in the given order.

    A shared expert works when they have been added up.
    """
    assert config.num_experts_per_tok is not None and config.moe_intermediate_size is not None  # checked
    d, f = config.hidden_size, config.moe_intermediate_size
    held = config.num_experts_per_tok * (d + max(4 * f, 3 * d))
    if config.shared_expert_intermediate_size is not None:
        held = max(held, d + 3 * config.shared_expert_intermediate_size)
    return held


def decode(config: PreTrainedConfig, context: int, num_new: int, itemsize: int) -> int:
    """The new tokens' part of the cache, the keys of a layer once more while a column is added, and the logits."""
    grown = theory(config, context + num_new, itemsize) - theory(config, context, itemsize)
    keys = (context + num_new) * config.num_key_value_heads * config.head_dim
    return grown + itemsize * (keys + config.vocab_size)


def activations(config: PreTrainedConfig, num_tokens: int, itemsize: int) -> int:
    """Bytes that layers keep for the backward in all loops, as `training_plt.memory` counts, and the log-softmax."""
    kept = of_loops(config, num_tokens, itemsize, num_left_out=0)
    return kept + of_vocabulary(config, num_tokens, itemsize)


def training_step(config: PreTrainedConfig, num_tokens: int, weights: int, itemsize: int) -> int:
    """The greatest of three moments.

    All activations, and two more tensors `[T, V]` where the backward begins; the activations of earlier loops, and
    gradients of all but the embeddings, where it has left the last loop; all gradients.
    """
    begins = activations(config, num_tokens, itemsize) + 2 * of_vocabulary(config, num_tokens, itemsize)
    embeddings = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    earlier = of_loops(config, num_tokens, itemsize, num_left_out=1)
    return max(begins, earlier + weights - itemsize * embeddings, weights)


def of_loops(config: PreTrainedConfig, num_tokens: int, itemsize: int, num_left_out: int) -> int:
    """The activations of all layers, without those of the last loops, in the stage that has several."""
    plt, kept = as_plt(config), 0.0
    for stage in plt.stages:
        loops = stage.loops[: len(stage.loops) - num_left_out * (stage == plt.looped_stage)]
        for layer_idx in stage.layers:
            first, later = bytes_of_layer(plt, stage, layer_idx, bf16=False)
            kept += len(loops[:1]) * first + len(loops[1:]) * later
    return int(num_tokens * kept * itemsize / 4)  # kept counts float32


def of_vocabulary(config: PreTrainedConfig, num_tokens: int, itemsize: int) -> int:
    """A number for each token and each entry of the vocabulary."""
    return num_tokens * config.vocab_size * itemsize
