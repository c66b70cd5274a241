# SPDX-License-Identifier: Apache-2.0
"""The plan of a conversion: the config, and where each tensor of the PLT comes from."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM

from ..error_text import named, some
from ..reading.checkpoint import DTYPES, Checkpoint, StoredTensor
from ..reading.fields import VANILLA_LOOP
from ..reading.rope import check_rotary
from ..source import Source
from .computed import Derivation, find_derivations
from .cut import WHOLE, Cut
from .shapes import check_counts, check_shapes, check_sizes

OWN_HEAD = "The config ties the head, but the one that is stored differs: it is kept untied, as transformers 5 does."


@dataclass(frozen=True)
class Part:
    """Tensors of a PLT that are loaded together."""

    name: str  # of the first
    nbytes: int
    load: Callable[[], dict[str, Tensor]]

    def size_of(self) -> int:
        return self.nbytes


@dataclass(frozen=True)
class Plan:
    """What will be written: a config, and tensors of the source that are kept, computed from it, or new."""

    source: Source
    checkpoint: Checkpoint
    config: PLTConfig
    kept: dict[str, StoredTensor]  # by their names in the PLT; equal to the bit
    derived: list[Derivation]
    dropped: list[str]
    added: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # sentences for the model card, beside those of the source
    cut: Cut = WHOLE

    @property
    def layers(self) -> Sequence[int]:
        """The numbers that its layers have in the source."""
        return self.cut.layers or range(self.config.num_hidden_layers)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts())

    @property
    def num_derived(self) -> int:
        return sum(len(derivation.outline) for derivation in self.derived)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors that come from the source."""
        shapes = {name: tensor.shape for name, tensor in self.kept.items()}
        for derivation in self.derived:
            shapes |= {name: tuple(tensor.shape) for name, tensor in derivation.outline.items()}
        return shapes

    def parts(self) -> Iterator[Part]:
        """Every tensor of the PLT: those of one derivation together, others alone."""
        for name, stored in self.kept.items():
            yield Part(name, stored.nbytes, partial(load_one, name, stored))
        for derivation in self.derived:
            yield Part(derivation.name, sum(made.nbytes for made in derivation.outline.values()), derivation.compute)
        for name, tensor in self.added.items():
            yield Part(name, tensor.nbytes, partial(dict, {name: tensor}))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the PLT; no more than those of one part are in memory."""
        for part in self.parts():
            yield from part.load().items()


def load_one(name: str, stored: StoredTensor) -> dict[str, Tensor]:
    """A stored tensor under its name in the PLT."""
    return {name: stored.load()}


def make_plan(
    checkpoint: Checkpoint, source: Source, num_loops: int | None, ignored: set[str], cut: Cut = WHOLE
) -> Plan:
    """The plan that expresses a checkpoint exactly.

    Args:
        num_loops: of the vanilla loop that a plain source becomes; None keeps the loops of the source.
        ignored: fields of its config to leave out.
        cut: of the layers of a plain source.

    Raises:
        ValueError: the config cannot be expressed, or tensors are missing, extra or misshapen.
    """
    source = source.told_by({name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    fields = source.config_fields(checkpoint.config, ignored)
    own = make_config(fields)
    cut = cut.of(own)
    fields |= cut.fields(own)
    if num_loops is not None:
        fields |= loops_of(source, own.most_loops) | {"num_loops": num_loops}
    config = make_config(fields | {"dtype": main_dtype(checkpoint), "architectures": ["PLTForCausalLM"]})
    plan = assign_tensors(checkpoint, source, config, cut)
    check_sizes(plan.shapes(), config)
    check_rotary(config)
    check_shapes(plan.shapes(), expected_shapes(config))
    return plan


def loops_of(source: Source, num_loops: int) -> dict[str, Any]:
    """The fields of a source that runs another number of loops than its own.

    Raises:
        ValueError: it was trained for its number.
    """
    if source.any_loops:
        return {}
    if num_loops != 1:
        raise ValueError(f"`--loops` without `--to-plt` is for plain sources, {source.title} has {num_loops} loops.")
    return VANILLA_LOOP


def check_dropped(plan: Plan) -> None:
    """Compare what is dropped with what a PLT computes in its place, where the source says how; this reads it."""
    if plan.source.check_dropped is not None:
        plan.source.check_dropped(plan.checkpoint, plan.config)


def untie_own_head(plan: Plan) -> Plan:
    """A plan that keeps a head which differs from the embeddings that the config ties it to; this reads both.

    transformers 5 loads such a checkpoint untied, with the head that is stored, and its own class is the reference.

    Raises:
        ValueError: it differs, and the publisher's code is the reference: nothing says which head that would use.
    """
    if "lm_head.weight" not in plan.dropped:
        return plan
    head, embeddings = plan.checkpoint.tensors["lm_head.weight"], plan.kept["model.embed_tokens.weight"]
    if torch.equal(head.load(), embeddings.load()):
        return plan
    if plan.source.reference_class is None:
        raise ValueError("`tie_word_embeddings` is true, but `lm_head.weight` differs from the embeddings.")
    config = PLTConfig.from_dict(plan.config.to_dict() | {"tie_word_embeddings": False})
    dropped = [name for name in plan.dropped if name != "lm_head.weight"]
    print(OWN_HEAD)
    kept = plan.kept | {"lm_head.weight": head}
    return replace(plan, config=config, kept=kept, dropped=dropped, notes=(*plan.notes, OWN_HEAD))


def make_config(fields: dict[str, Any]) -> PLTConfig:
    """The config with these fields.

    Raises:
        ValueError: a value is not allowed.
    """
    check_counts(fields)
    try:
        return PLTConfig(**fields)
    except StrictDataclassError as error:
        raise ValueError(f"The config cannot be that of a PLT. {error}") from error


def main_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype that most of a checkpoint's bytes have."""
    nbytes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        nbytes[tensor.dtype] += tensor.nbytes
    return DTYPES[nbytes.most_common(1)[0][0]]


def assign_tensors(checkpoint: Checkpoint, source: Source, config: PLTConfig, cut: Cut) -> Plan:
    """Decide for every tensor of a source whether it is kept, read by a converter or dropped.

    Raises:
        ValueError: two become one, or a converter cannot compute what it should.
    """
    kept, dropped = rename_tensors(checkpoint, source, cut)
    derived = find_derivations(kept, source.converters, config)
    read = {tensor.name for derivation in derived for _, tensor in derivation.stored}
    kept = {name: tensor for name, tensor in kept.items() if tensor.name not in read}
    if config.tie_word_embeddings and "lm_head.weight" in kept and "model.embed_tokens.weight" in kept:
        dropped.append(kept.pop("lm_head.weight").name)
    origins = Counter([*kept, *(name for derivation in derived for name in derivation.outline)])
    if twice := [name for name, count in origins.items() if count > 1]:
        raise ValueError(f"More than one tensor of the source becomes {some(twice)}.")
    notes = () if cut.note is None else (cut.note,)
    return Plan(source, checkpoint, config, kept, derived, dropped, notes=notes, cut=cut)


def rename_tensors(checkpoint: Checkpoint, source: Source, cut: Cut) -> tuple[dict[str, StoredTensor], list[str]]:
    """The source's tensors under their new names, and those that are dropped."""
    renamed: dict[str, StoredTensor] = {}
    dropped = []
    for name, tensor in checkpoint.tensors.items():
        new_name = source.rename(name)
        if new_name is not None:
            new_name = cut.rename(new_name)
        if new_name is None:
            dropped.append(name)
        elif new_name in renamed:
            raise ValueError(f"{named(name)} and {named(renamed[new_name].name)} both become {named(new_name)}.")
        else:
            renamed[new_name] = tensor
    return renamed, dropped


def expected_shapes(config: PLTConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a PLT of this config saves."""
    with torch.device("meta"):
        model = PLTForCausalLM(config)
    parameters: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    if config.tie_word_embeddings:
        del parameters["lm_head.weight"]
    # files hold a matrix per expert, the model one tensor of all
    return {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, parameters).items()}
