# SPDX-License-Identifier: Apache-2.0
"""The sizes in a config, compared with the tensors before anything of these sizes is allocated."""

import re
from collections.abc import Mapping
from typing import Any

from configuration_plt import PLTConfig

from ..error_text import named, shown, some

# published models have 2 to 4 loops, research up to a few dozen; one digit too many would run for hours
MOST = {"num_loops": 1000, "num_hidden_layers": 10_000}
LAYER = "model.layers.0."

Shapes = Mapping[str, tuple[int, ...]]
NamesAndShapes = Mapping[str, tuple[int, ...] | None]


def check_counts(fields: Mapping[str, Any]) -> None:
    """ValueError if a config has more loops or layers than anyone could mean: both become lists of that length."""
    for name, most in MOST.items():
        value: Any = fields.get(name)
        if type(value) in (int, float) and value > most:
            raise ValueError(f"`{name}` must be at most {most}, got {shown(value)}.")


def check_sizes(shapes: Shapes, config: PLTConfig) -> None:
    """Compare every size of a config with one tensor, and the number of layers with the tensors' names.

    Raises:
        ValueError: they differ.
    """
    layers = {found[1] for found in (re.match(r"model\.layers\.(\d+)\.", name) for name in shapes) if found}
    if not layers and shapes:
        raise ValueError(
            "The weights must be those of a whole language model, `model.layers.N.` once renamed, got names such as "
            f"{some(sorted(shapes))}. A base model (`layers.N.`) has no head of its own."
        )
    if len(layers) != config.num_hidden_layers:
        raise ValueError(
            f"`num_hidden_layers` must be {len(layers)}, the number of layers that the weights name as "
            f"`model.layers.N.` once renamed, got {config.num_hidden_layers}."
        )
    assert config.head_dim is not None and config.num_key_value_heads is not None  # the config fills them in
    by_size = {
        "model.embed_tokens.weight": (config.vocab_size, config.hidden_size),
        f"{LAYER}self_attn.q_proj.weight": (config.num_attention_heads * config.head_dim, config.hidden_size),
        f"{LAYER}self_attn.k_proj.weight": (config.num_key_value_heads * config.head_dim, config.hidden_size),
    }
    if config.is_sparse(0):
        assert config.moe_intermediate_size is not None  # of a config with experts
        by_size[f"{LAYER}mlp.experts.0.gate_proj.weight"] = (config.moe_intermediate_size, config.hidden_size)
        by_size[f"{LAYER}mlp.gate.weight"] = (config.num_experts, config.hidden_size)
    else:
        by_size[f"{LAYER}mlp.gate_proj.weight"] = (config.intermediate_size, config.hidden_size)
    missing = [name for name in by_size if name not in shapes]
    if missing:
        raise ValueError(f"The weights do not fit the config: missing {some(missing)}.")
    for name, shape in by_size.items():
        check_shape(name, shapes[name], shape)


def check_shapes(shapes: Shapes, expected: Shapes) -> None:
    """Check that tensors are exactly the expected ones.

    Raises:
        ValueError: some are missing, extra or misshapen.
    """
    missing = [name for name in expected if name not in shapes]
    extra = [name for name in shapes if name not in expected]
    if missing or extra:
        raise ValueError(f"The weights do not fit the config: missing {some(missing)}; not expected {some(extra)}.")
    for name, shape in shapes.items():
        check_shape(name, shape, expected[name])


def check_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ValueError(f"{named(name)} must have the shape {expected} by the config, got {shown(shape)}.")
