# SPDX-License-Identifier: Apache-2.0
"""The published spelling of a PLT's config, LoopCoder-V2's, read as a `PLTConfig`."""

from dataclasses import MISSING, dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_plt import PLTConfig


@strict
@dataclass
class PublishedFields:
    """The fields that the publisher spells differently from `PLTConfig`."""

    plt_num_loops: int
    plt_window_size: list[int]  # keys to the left and to the right of the token, which is not counted
    plt_normalize_per_loop: bool
    plt_gate_use_hidden_states: bool
    plt_emb_scale: float | int | None = None  # None is a scale of 1
    plt_hidden_scale: float | int | None = None

    def translated(self) -> dict[str, Any]:
        """The same as fields of `PLTConfig`.

        Raises:
            ValueError: a later loop would see keys to the right of the token.
        """
        if len(self.plt_window_size) != 2 or self.plt_window_size[1] != 0:
            raise ValueError(f"`plt_window_size` must be [keys to the left, 0], got {self.plt_window_size}.")
        return {
            "num_loops": self.plt_num_loops,
            "loop_shift": True,
            "loop_attention": "gated_window",
            "sliding_window": self.plt_window_size[0] + 1,  # ours counts the token itself
            "gate_input": "hidden" if self.plt_gate_use_hidden_states else "query",
            "embedding_scale": 1.0 if self.plt_emb_scale is None else self.plt_emb_scale,
            "hidden_scale": 1.0 if self.plt_hidden_scale is None else self.plt_hidden_scale,
            "loop_norm": self.plt_normalize_per_loop,
        }


OWN = tuple(field.name for field in dataclass_fields(PublishedFields))
# fields that have no default in the publisher's format: taking one from `PLTConfig` would be a guess
REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    *(field.name for field in dataclass_fields(PublishedFields) if field.default is MISSING),
)
NO_TOKENS = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))  # absent means none
ROPE = ("rope_theta", "rope_scaling")  # the base class makes `rope_parameters` of them
IGNORED = ("model_type", "architectures", "auto_map", "_name_or_path")


class PublishedPLTConfig(PLTConfig):
    """The class that `AutoConfig` finds for LoopCoder-V2; it reads a `PLTConfig`, and so gets the classes of a PLT."""

    model_type = "iquestpltcoder"

    @classmethod
    # the base class promises its own class; models are chosen by the class of what this returns
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> PLTConfig:  # type: ignore[override]
        """Translate a published `config.json`.

        Raises:
            ValueError: a field is missing, or one is set that nothing here reads.
            StrictDataclassFieldValidationError: a value has the wrong type.
        """
        check_names(config_dict)
        own = PublishedFields(**{name: config_dict[name] for name in OWN if name in config_dict})
        shared = {name: value for name, value in config_dict.items() if name not in (*OWN, *IGNORED)}
        fields = NO_TOKENS | shared | own.translated() | {"architectures": ["PLTForCausalLM"]}
        return PLTConfig.from_dict(fields, **kwargs)


def check_names(config: dict[str, Any]) -> None:
    """ValueError if a field is missing that has no default, or one is set that is not known."""
    missing = [name for name in REQUIRED if name not in config]
    if not config.keys() & {"rope_theta", "rope_parameters"}:
        missing.append("rope_theta")
    if missing:
        raise ValueError(f"The config of an `{PublishedPLTConfig.model_type}` must have {', '.join(missing)}.")
    known = {*PLTConfig.__dataclass_fields__, *OWN, *IGNORED, *ROPE, "torch_dtype"}
    unknown = [f"`{name}` = {value!r}" for name, value in config.items() if value and name not in known]
    if unknown:
        raise ValueError(f"The config sets fields that are not supported: {', '.join(unknown)}.")
