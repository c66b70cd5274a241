# SPDX-License-Identifier: Apache-2.0
"""Reading a source's config: a field that is set is either understood or refused by name."""

from dataclasses import MISSING
from dataclasses import fields as dataclass_fields
from typing import Any

from transformers.activations import ACT2FN

from ..error_text import named, shown
from .kinds_of_values import KINDS, Kind, equals, is_kind
from .meaningless_fields import DEFAULTS, HARMLESS
from .rope import check_rope

REQUIRED = object()


class Fields:
    """The fields of a source's `config.json`: take those that are understood, then call `refuse_rest`."""

    def __init__(self, config: dict):
        self.config = config
        self.left = {name: value for name, value in config.items() if name not in HARMLESS}

    def take(self, name: str, kind: Kind, default: Any = REQUIRED) -> Any:
        """The value of a field; null is accepted if it is the default.

        Raises:
            ValueError: it is of another kind, or is absent and has no default.
        """
        if name not in self.config and default is REQUIRED:
            raise ValueError(f"The config of a `{self.config.get('model_type')}` must have the field `{name}`.")
        self.left.pop(name, None)
        value = self.config.get(name, default)
        if not (value is None and default is None) and not is_kind(value, kind):
            raise ValueError(f"Field `{name}` of the source must be {KINDS[kind]}, got {shown(value)}.")
        return value

    def take_all(self, declared: Any) -> Any:
        """An object of a dataclass that declares fields of the source: their names, kinds and defaults.

        Raises:
            ValueError: a field is of another kind, or is absent and has no default.
        """
        values = {}
        for field in dataclass_fields(declared):
            kind: Any = field.type
            values[field.name] = self.take(field.name, kind, REQUIRED if field.default is MISSING else field.default)
        return declared(**values)

    def require(self, name: str, *allowed: Any) -> None:
        """Accept a field only if it is absent or has one of these values.

        Raises:
            ValueError: it has another value.
        """
        value = self.left.pop(name, allowed[0])
        if not any(equals(value, item) for item in allowed):
            supported = " or ".join(repr(item) for item in allowed)
            raise ValueError(f"Field `{name}` of the source is not supported unless {supported}, got {shown(value)}.")

    def refuse_rest(self, ignored: set[str]) -> None:
        """Refuse fields that are set but were not taken; None, False, 0, empty and transformers' default are unset.

        Raises:
            ValueError: there is such a field, and it is not in `ignored`.
        """
        unknown = {
            name: value
            for name, value in self.left.items()
            if value and name not in ignored and not (name in DEFAULTS and equals(value, DEFAULTS[name]))
        }
        if unknown:
            listed = [f"{named(name)} = {shown(value)}" for name, value in sorted(unknown.items())]
            rest = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
            raise ValueError(
                f"The source sets fields that are not supported: {', '.join(listed[:5])}{rest}. "
                "`--ignore FIELD` leaves out a field that you know to be irrelevant."
            )


def llama_fields(fields: Fields) -> dict[str, Any]:
    """The fields that a source shares with Llama, as `PLTConfig` spells them."""
    layer_types = fields.take("layer_types", list[str], None) or []
    if set(layer_types) - {"full_attention"}:
        raise ValueError(f"Field `layer_types` of the source must be all 'full_attention', got {shown(layer_types)}.")
    counts = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    taken = {name: fields.take(name, int) for name in (*counts, "max_position_embeddings")}
    taken |= {name: fields.take(name, int, None) for name in ("num_key_value_heads", "head_dim")}
    taken |= {name: fields.take(name, int, None) for name in ("pad_token_id", "bos_token_id")}
    fields.require("partial_rotary_factor", 1.0, None)
    return taken | {
        "eos_token_id": fields.take("eos_token_id", int | list[int], None),
        "rms_norm_eps": fields.take("rms_norm_eps", float),
        "initializer_range": fields.take("initializer_range", float, 0.02),
        "attention_dropout": fields.take("attention_dropout", float, 0.0),
        "tie_word_embeddings": fields.take("tie_word_embeddings", bool),
        "hidden_act": activation(fields),
        "rope_parameters": rope_parameters(fields),
    }


def activation(fields: Fields) -> str:
    """The name of the MLP's activation.

    Raises:
        ValueError: transformers has none of that name.
    """
    name = fields.take("hidden_act", str, "silu")
    if name not in ACT2FN:
        raise ValueError(f"Field `hidden_act` of the source must be one of transformers' names, got {shown(name)}.")
    return name


def bias_fields(fields: Fields) -> dict[str, Any]:
    """The biases of attention and MLP under Llama's names; many configs leave them out."""
    return {name: fields.take(name, bool, False) for name in ("attention_bias", "mlp_bias")}


def refuse_sliding_window(fields: Fields) -> None:
    """Require the window of a Qwen-like config to be off, which makes its length meaningless."""
    fields.require("use_sliding_window", False)
    for name in ("sliding_window", "max_window_layers"):
        fields.take(name, int, None)


def rope_parameters(fields: Fields) -> dict[str, Any]:
    """Rotary settings in today's form, made from it or from `rope_theta` and `rope_scaling`."""
    parameters = fields.take("rope_parameters", dict, None)
    if parameters is None:
        parameters = dict(fields.take("rope_scaling", dict, None) or {})
        parameters.setdefault("rope_type", parameters.pop("type", "default"))
    else:
        fields.require("rope_scaling", None)
    parameters = {name: value for name, value in parameters.items() if value is not None}
    if "rope_theta" in parameters:
        fields.take("rope_theta", float, None)
    else:
        parameters["rope_theta"] = fields.take("rope_theta", float)
    check_rope(parameters)
    return parameters


VANILLA_LOOP = {"loop_shift": False, "loop_attention": "own", "embedding_scale": 0.0, "hidden_scale": 1.0}
