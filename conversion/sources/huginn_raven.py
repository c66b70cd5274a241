# SPDX-License-Identifier: Apache-2.0
"""Huginn and the Retrofits of Llama and OLMo-2: three families under one `model_type`, told by their tensors."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

from ..error_text import shown
from ..plan.raven_families import HUGINN, Family, Told, check_rotation, converters, renames, tell
from ..plan.shapes import NamesAndShapes
from ..reading.fields import Fields, rope_parameters
from ..reading.kinds_of_values import is_kind
from ..reading.rope import check_rope
from ..source import Source

COUNTS = {"prelude": "n_layers_in_prelude", "core_block": "n_layers_in_recurrent_block", "coda": "n_layers_in_coda"}
FIRST_STATES = {"random": "zeros", "embed-init": "prelude", "skip-adapter": "none"}
# of training, or of what is said otherwise: `n_layers` is 16 in most Retrofits, however many layers there are
UNREAD = (
    "activation_checkpoint_impl",
    "effective_expected_depth",
    "init_orthogonal",
    "init_strategy",
    "mean_backprop_depth",
    "n_layers",
    "num_hidden_layers",
    "padding_multiple",
    "sampling_scheme",
    "state_init",
    "test_time_noise_type",
)


def by_tensors(shapes: NamesAndShapes) -> Source:
    """The source that a checkpoint with these tensors is; none is told by no tensor."""
    if not shapes:
        return SOURCE
    told = tell(shapes)
    return replace(
        SOURCE,
        title=told.family.title,
        read_fields=partial(read_fields, told=told),
        renames=renames(told),
        converters=converters(told.family),
        check_dropped=check_rotation if told.family is HUGINN else None,
    )


def read_fields(fields: Fields, told: Told) -> dict[str, Any]:
    for name in UNREAD:
        fields.take(name, object, None)
    fields.require("architecture_class_name", "RecurrentGPT")
    fields.require("block_class_name", "SandwichBlock")
    fields.require("norm_class_name", "RMSNorm_llama")
    fields.require("mlp_class_name", "GatedMLP")
    fields.require("nonlin_name", "SiLU")
    fields.require("injection_type", "linear")
    fields.require("bias", False)
    fields.require("test_time_noise", 0)
    for part, name in COUNTS.items():
        check_count(fields, name, f"transformer.{part}.N.", told.counts[part])
    has_bias = fields.take("qk_bias", bool, True)
    return {
        **sizes(fields, told),
        "num_hidden_layers": sum(told.counts.values()),
        "num_prelude_layers": told.counts["prelude"],
        "num_coda_layers": told.counts["coda"],
        "num_loops": fields.take("mean_recurrence", int, 32),
        "loop_shift": False,
        "loop_attention": "own",
        "loop_norm": False,
        "loop_input": "adapter",
        "initial_state": first_state(fields),
        "rms_norm_eps": fields.take("norm_eps", float, 1e-6),
        "hidden_act": "silu",
        "attention_bias": has_bias,
        "attention_output_bias": False,
        "rope_parameters": rotation(fields, told.family),
        **{name: fields.take(name, int, None) for name in ("pad_token_id", "bos_token_id")},
        "eos_token_id": fields.take("eos_token_id", int | list[int], None),
        **told.family.fields,
    }


def sizes(fields: Fields, told: Told) -> dict[str, Any]:
    """The sizes, what embeddings are multiplied by, and whether the head is theirs."""
    width, heads = spelled(fields, "n_embd", "hidden_size"), spelled(fields, "n_heads", "num_attention_heads")
    vocab_size, block_size = fields.take("vocab_size", int), fields.take("block_size", int, 4096)
    head_dim = fields.take("head_dim", int, None) or width // max(heads, 1)
    tied = fields.take("tie_embeddings", bool, True)
    fields.require("tie_word_embeddings", tied, None)
    return {
        "vocab_size": fields.take("padded_vocab_size", int, vocab_size),
        "hidden_size": width,
        "intermediate_size": fields.take("intermediate_size", int),
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads(fields, heads, head_dim, told.num_rows),
        "head_dim": head_dim,
        "max_position_embeddings": fields.take("max_position_embeddings", int, block_size),
        "embedding_multiplier": embedding_multiplier(fields, told.family, width),
        "tie_word_embeddings": tied,
    }


def spelled(fields: Fields, name: str, other: str) -> int:
    """A size that transformers knows by another name, too."""
    if name not in fields.config and other in fields.config:
        name, other = other, name
    value: int = fields.take(name, int)
    fields.require(other, value)
    return value


def check_count(fields: Fields, name: str, prefix: str, count: int) -> None:
    """ValueError unless a part has as many layers as the config says."""
    if (value := fields.take(name, int)) != count:
        raise ValueError(
            f"`{name}` must be {count}, the number of layers that the weights name as `{prefix}`, got {value}."
        )


def key_value_heads(fields: Fields, heads: int, head_dim: int, num_rows: int | None) -> int:
    """As the config says, or else as many as fused queries, keys and values have rows for beside the queries."""
    said: int | None = fields.take("num_key_value_heads", int, None)
    if said is not None or num_rows is None:
        return said or heads
    return max((num_rows // max(head_dim, 1) - heads) // 2, 1)


def embedding_multiplier(fields: Fields, family: Family, width: int) -> float:
    """`embed_scale` among the initial values; where there are none, Huginn's is the root of the width."""
    values = fields.take("init_values", dict, None)
    if values is None:
        return math.sqrt(max(width, 0)) if family is HUGINN else 1.0
    value = values.get("embed_scale")
    if not is_kind(value, float):
        raise ValueError(f"`embed_scale` in `init_values` of the source must be a finite number, got {shown(value)}.")
    return float(value)


def first_state(fields: Fields) -> str:
    """What the adapter reads in loop 0; a random state is zeros here, its mean."""
    mode = fields.take("initial_state_mode", str, "random")
    if mode not in FIRST_STATES:
        raise ValueError(
            f"`initial_state_mode` of the source must be one of {', '.join(FIRST_STATES)}, got {shown(mode)}."
        )
    return FIRST_STATES[mode]


def rotation(fields: Fields, family: Family) -> dict[str, Any]:
    """Rotary settings; Huginn's code reads `rope_base`, which Retrofits have too, and do not read beside others."""
    base = fields.take("rope_base", float, 50_000)
    others = ("rope_theta", "rope_parameters", "rope_scaling")
    if family is not HUGINN and any(fields.config.get(name) is not None for name in others):
        return rope_parameters(fields)
    for name, value in zip(others, (base, None, None), strict=True):
        fields.require(name, value, None)
    parameters = {"rope_type": "default", "rope_theta": base}
    check_rope(parameters)
    return parameters


def untold(fields: Fields) -> dict[str, Any]:
    raise ValueError("A `huginn_raven` is told by the names of its tensors, which must be in a folder or an index.")


SOURCE = Source(
    model_type="huginn_raven",
    title="Huginn; Retrofits of Llama, TinyLlama and OLMo-2",
    becomes="a vanilla loop between a prelude and a coda, with as many loops as `--loops` says",
    read_fields=untold,
    dropped=(r"^freqs_cis$",),
    notes=("Where the source's first loop reads a random state, here it reads zeros, the mean of that state.",),
    by_tensors=by_tensors,
    any_loops=True,
)
