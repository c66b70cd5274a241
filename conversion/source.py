# SPDX-License-Identifier: Apache-2.0
"""What a source format is: how its config and its tensor names become those of a PLT."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig, __version__
from transformers.core_model_loading import WeightConverter

from configuration_plt import PLTConfig

from .plan.shapes import NamesAndShapes, check_counts
from .reading.checkpoint import Checkpoint
from .reading.fields import Fields
from .reading.meaningless_fields import HARMLESS
from .reading.rope import check_rope

LEGACY_ROPE = ("rope_theta", "rope_scaling")  # today in `rope_parameters`
PLAIN_DECODER = "a plain decoder, or a vanilla loop with `--loops`"  # what several sources become


@dataclass(frozen=True)
class Source:
    """One `model_type` that can be converted; each is `SOURCE` in its own file of `sources`."""

    model_type: str
    title: str  # the publisher's name for it, for tables
    becomes: str  # what it is as a PLT, for tables
    read_fields: Callable[[Fields], dict[str, Any]]  # its config -> fields of `PLTConfig`
    renames: tuple[tuple[str, str], ...] = ()  # regular expressions for its tensor names; others stay
    converters: tuple[WeightConverter, ...] = ()  # for tensors to be computed, by their names after the renames
    dropped: tuple[str, ...] = ()  # regular expressions for tensors that a PLT does not need
    notes: tuple[str, ...] = ()  # sentences for the model card
    reference_class: str | None = None  # transformers' own class, where there is one
    # where configs do not tell how a checkpoint computes, but its tensors do: what it is by their names and shapes
    by_tensors: Callable[[NamesAndShapes], "Source"] | None = None
    check_dropped: Callable[[Checkpoint, PLTConfig], None] | None = None  # with what a PLT computes in their place
    any_loops: bool = False  # it was trained for any number of loops

    def told_by(self, shapes: NamesAndShapes) -> "Source":
        """The source that a checkpoint with these tensors is; shapes are None where only names are known."""
        return self if self.by_tensors is None else self.by_tensors(shapes)

    def config_fields(self, config: dict, ignored: set[str]) -> dict[str, Any]:
        """A source's `config.json` -> fields of `PLTConfig`.

        Raises:
            ValueError: a field is missing, or set to what is not supported, or not known and not in `ignored`.
        """
        if self.reference_class is not None:
            # transformers writes only what differs from its defaults; the rest must be checked too
            complete = self.reference_config(config)[1]
            spelled = {*LEGACY_ROPE, *self.aliases}
            config = {name: value for name, value in config.items() if name not in spelled} | complete
        fields = Fields(config)
        taken = self.read_fields(fields)
        fields.refuse_rest(ignored)
        return taken

    @property
    def aliases(self) -> set[str]:
        """Both names of each field that transformers and the hub spell in two ways."""
        return {name for pair in CONFIG_MAPPING[self.model_type].attribute_map.items() for name in pair}

    def reference_config(self, config: dict) -> tuple[PreTrainedConfig, dict]:
        """The config of transformers' own class, and its fields.

        Raises:
            ValueError: the class does not accept a value.
        """
        check_counts(config)
        for name in ("rope_parameters", "rope_scaling"):
            if isinstance(config.get(name), dict):
                check_rope(config[name])
        if self.model_type not in CONFIG_MAPPING:
            raise ValueError(
                f"`reference_class` of `{self.model_type}` must be in transformers, but {__version__} knows no such "
                "`model_type`."
            )
        config_class, aliases = CONFIG_MAPPING[self.model_type], self.aliases
        declared = {field.name for field in dataclass_fields(config_class)} - HARMLESS
        # `head_dim` is read by some that do not declare it
        names = declared | aliases | {*LEGACY_ROPE, "head_dim"}
        known = {name: value for name, value in config.items() if name in names}
        try:
            reference = config_class.from_dict(copy.deepcopy(known))  # which adds to nested values
            others = {name: value for name, value in reference.to_dict().items() if name not in aliases}
            return reference, others | {name: getattr(reference, name) for name in declared & aliases}
        except (StrictDataclassError, ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"transformers' {self.title} must accept the source's config, got: {error}") from error

    def rename(self, name: str) -> str | None:
        """The PLT's name of a tensor, or None if it is dropped."""
        if any(re.search(pattern, name) for pattern in self.dropped):
            return None
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name
