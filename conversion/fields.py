# SPDX-License-Identifier: Apache-2.0
"""Reading a source's config: every field that is set is either understood or refused by name."""

from typing import Any

# nothing in these changes what a checkpoint computes
HARMLESS = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "id2label",
    "label2id",
    "model_type",
    "name_or_path",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
REQUIRED = object()


class Fields:
    """The fields of a source's `config.json`; `refuse_rest` is called when all that is understood has been taken."""

    def __init__(self, config: dict):
        self.config = config
        self.left = {name: value for name, value in config.items() if name not in HARMLESS}

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """The value of a field.

        Raises:
            ValueError: it is absent, and the publisher's code has no default for it.
        """
        if name not in self.config and default is REQUIRED:
            raise ValueError(f"The config of a `{self.config.get('model_type')}` must have the field `{name}`.")
        self.left.pop(name, None)
        return self.config.get(name, default)

    def require(self, name: str, *allowed: Any) -> None:
        """Accept a field only with one of these values, or absent.

        Raises:
            ValueError: it has another value.
        """
        value = self.left.pop(name, allowed[0])
        if value not in allowed:
            supported = " or ".join(repr(item) for item in allowed)
            raise ValueError(f"Field `{name}` of the source is not supported unless {supported}, got {value!r}.")

    def refuse_rest(self, ignored: set[str]) -> None:
        """Refuse fields that are set and were not taken; unset is None, False, 0 or empty.

        Raises:
            ValueError: there is one that is not in `ignored`.
        """
        unknown = {name: value for name, value in self.left.items() if value and name not in ignored}
        if unknown:
            listed = ", ".join(f"`{name}` = {value!r}" for name, value in sorted(unknown.items()))
            raise ValueError(
                f"The source sets fields that are not supported: {listed}. "
                "`--ignore FIELD` leaves out one that you know to change nothing."
            )


def llama_fields(fields: Fields) -> dict[str, Any]:
    """The fields that a source shares with Llama, as `PLTConfig` spells them."""
    layers = fields.take("num_hidden_layers")
    layer_types = fields.take("layer_types", None) or []
    if set(layer_types) - {"full_attention"}:
        raise ValueError(f"Field `layer_types` of the source must be all 'full_attention', got {layer_types}.")
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "rms_norm_eps")
    taken = {name: fields.take(name) for name in (*names, "max_position_embeddings", "tie_word_embeddings")}
    defaults = {
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    taken |= {name: fields.take(name, default) for name, default in defaults.items()}
    fields.require("partial_rotary_factor", 1.0, None)
    return taken | {"num_hidden_layers": layers, "rope_parameters": rope_parameters(fields)}


def bias_fields(fields: Fields) -> dict[str, Any]:
    """The biases of attention and MLP under Llama's names, absent in many configs."""
    return {name: fields.take(name, False) for name in ("attention_bias", "mlp_bias")}


def refuse_sliding_window(fields: Fields) -> None:
    """Require the window of a Qwen-like config to be off; its reach then means nothing."""
    fields.require("use_sliding_window", False)
    for name in ("sliding_window", "max_window_layers"):
        fields.take(name, None)


def rope_parameters(fields: Fields) -> dict[str, Any]:
    """Rotary settings in today's form, from that or from `rope_theta` and `rope_scaling`."""
    parameters = fields.take("rope_parameters", None)
    if parameters is None:
        scaling = dict(fields.take("rope_scaling", None) or {})
        scaling.setdefault("rope_type", scaling.pop("type", "default"))
        parameters = {"rope_theta": fields.take("rope_theta")} | scaling
    else:
        fields.take("rope_theta", None)
        fields.take("rope_scaling", None)
    if parameters.get("rope_type", "default") not in ROPE_TYPES:
        raise ValueError(f"The source's rope type must be one of {ROPE_TYPES}, got {parameters['rope_type']!r}.")
    return parameters


VANILLA_LOOP = {"loop_shift": False, "loop_attention": "own", "embedding_scale": 0.0, "hidden_scale": 1.0}
