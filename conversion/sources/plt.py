# SPDX-License-Identifier: Apache-2.0
"""PLT itself: a plain model or vanilla loop trained with this package, whose mechanisms are to be switched on."""

from dataclasses import fields as dataclass_fields
from typing import Any

from transformers import PreTrainedConfig

from configuration_plt import PLTConfig

from ..reading.fields import Fields, activation
from ..reading.rope import check_rope
from ..source import Source


def read_fields(fields: Fields) -> dict[str, Any]:
    common = {field.name for field in dataclass_fields(PreTrainedConfig)}
    own = [field.name for field in dataclass_fields(PLTConfig) if field.name not in common]
    taken = {name: fields.take(name, number_kind(fields.left[name])) for name in own if name in fields.left}
    fields.take("one_pass", bool, None)  # a switch of the run, which release 0.1 saved
    if fields.take("sandwich_norm", bool, False):  # in older folders
        taken["norm_placement"] = "sandwich"
    check_rope(fields.take("rope_parameters", dict, None) or {})
    return taken | {
        "hidden_act": activation(fields),
        "eos_token_id": fields.take("eos_token_id", int | list[int], None),
    }


def number_kind(value: Any) -> type:
    """A kind that keeps numbers in bounds; `PLTConfig` itself checks what kind a field must be."""
    return type(value) if type(value) in (int, float) else object


SOURCE = Source(
    model_type="plt",
    title="PLT of this package",
    becomes="itself; `--to-plt` switches the mechanisms on in a plain model or a vanilla loop",
    read_fields=read_fields,
)
