# SPDX-License-Identifier: Apache-2.0
"""Rotary settings of a source, checked before transformers computes with them."""

from typing import Any

from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from configuration_plt import PLTConfig

from ..error_text import shown, some
from .kinds_of_values import KINDS, is_kind

REQUIRED = {  # by rope type
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
NUMBERS = (
    "rope_theta",
    "factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
)
FIELDS = (
    dict.fromkeys(("rope_type", "type"), str)
    | dict.fromkeys(NUMBERS, float)
    | dict.fromkeys(("short_factor", "long_factor"), list[float])
    | dict.fromkeys(("truncate", "finetuned"), bool)
)
CAN_BE_ZERO = ("mscale", "mscale_all_dim")  # which counts as absent


def check_rope(parameters: dict[str, Any]) -> None:
    """Check that settings name a known type, have the fields it needs and no others, and hold the right kinds.

    Raises:
        ValueError: they do not.
    """
    rope_type = parameters.get("rope_type", parameters.get("type", "default"))
    if not is_kind(rope_type, str) or rope_type not in REQUIRED:
        raise ValueError(f"The source's rope type must be one of {tuple(REQUIRED)}, got {shown(rope_type)}.")
    missing = [name for name in REQUIRED[rope_type] if parameters.get(name) is None]
    unknown = sorted(parameters.keys() - FIELDS.keys())
    if missing or unknown:
        raise ValueError(
            f"The source's rope settings do not fit the type {rope_type!r}: missing {some(missing)}; "
            f"not expected {some(unknown)}."
        )
    for name, value in parameters.items():
        if value is not None:
            check_setting(name, value)


def check_setting(name: str, value: Any) -> None:
    """ValueError if a rotary setting is of the wrong kind, or is not above 0."""
    kind = FIELDS[name]
    if not is_kind(value, kind):
        raise ValueError(f"`{name}` of the source's rope settings must be {KINDS[kind]}, got {shown(value)}.")
    numbers = {float: [value], list[float]: value}.get(kind, [])
    if name not in CAN_BE_ZERO and any(number <= 0 for number in numbers):
        raise ValueError(f"`{name}` of the source's rope settings must be above 0, got {shown(value)}.")
    if name == "partial_rotary_factor" and value != 1:
        raise ValueError(f"`{name}` of the source's rope settings is not supported unless 1.0, got {shown(value)}.")


def check_rotary(config: PLTConfig) -> None:
    """Compute the rotary frequencies once.

    Raises:
        ValueError: the settings give no frequencies, or not as many as the heads need.
    """
    assert config.head_dim is not None  # the config fills it in
    wanted, settings = config.head_dim // 2, dict(config.rope_parameters or {})
    for name in ("short_factor", "long_factor"):
        factors = settings.get(name)
        count = len(factors) if isinstance(factors, list) else wanted
        if count != wanted:
            raise ValueError(f"`{name}` of the source's rope settings must have {wanted} numbers, got {count}.")
    try:
        frequencies = LlamaRotaryEmbedding(config).inv_freq  # type: ignore[arg-type]  # reads only what a PLT's has
    except (ArithmeticError, RuntimeError, ValueError) as error:
        raise ValueError(f"The source's rope settings must give frequencies, got an error: {error}") from error
    if len(frequencies) != wanted or not frequencies.isfinite().all():
        raise ValueError(
            f"The source's rope settings must give {wanted} finite frequencies, got {shown(frequencies)}."
        )
