# SPDX-License-Identifier: Apache-2.0
"""The plan of a conversion: the config, and which tensor of the source becomes which of the PLT."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM

from .checkpoint import DTYPES, Checkpoint, StoredTensor
from .fields import VANILLA_LOOP
from .messages import named
from .rope import check_rotary
from .sizes import check_counts, check_shapes, check_sizes
from .source import Source


@dataclass(frozen=True)
class Plan:
    """What will be written: a config, tensors of the source under new names, and new tensors."""

    source: Source
    checkpoint: Checkpoint
    config: PLTConfig
    kept: dict[str, StoredTensor]
    dropped: list[str]
    added: dict[str, Tensor] = field(default_factory=dict)

    def load(self, name: str) -> Tensor:
        """A tensor of the PLT, from the source or new."""
        return self.added[name] if name in self.added else self.kept[name].load()


def make_plan(checkpoint: Checkpoint, source: Source, num_loops: int | None, ignored: set[str]) -> Plan:
    """The exact re-expression of a checkpoint.

    Args:
        num_loops: run a plain source as a vanilla loop of its whole stack; None keeps the loops of the source.
        ignored: fields of its config to leave out.

    Raises:
        ValueError: the config cannot be expressed, or tensors are missing, extra or misshapen.
    """
    fields = source.config_fields(checkpoint.config, ignored)
    if num_loops is not None:
        loops = fields["num_loops"]
        if loops != 1:
            raise ValueError(f"`--loops` without `--to-plt` is for plain sources, {source.title} has {loops} loops.")
        fields |= VANILLA_LOOP | {"num_loops": num_loops}
    config = make_config(fields | {"dtype": main_dtype(checkpoint), "architectures": ["PLTForCausalLM"]})
    kept, dropped = rename_tensors(checkpoint, source, config)
    shapes = {name: tensor.shape for name, tensor in kept.items()}
    check_sizes(shapes, config)
    check_rotary(config)
    check_shapes(shapes, expected_shapes(config))
    return Plan(source, checkpoint, config, kept, dropped)


def refuse_untied_head(plan: Plan) -> None:
    """Check that a head which is dropped, because the config ties it, equals the embeddings; this reads both.

    Raises:
        ValueError: it differs.
    """
    if "lm_head.weight" in plan.dropped:
        head, embeddings = plan.checkpoint.tensors["lm_head.weight"], plan.kept["model.embed_tokens.weight"]
        if not torch.equal(head.load(), embeddings.load()):
            raise ValueError("`tie_word_embeddings` is true, but `lm_head.weight` differs from the embeddings.")


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
    """The dtype of most of a checkpoint's bytes."""
    nbytes = Counter()
    for tensor in checkpoint.tensors.values():
        nbytes[tensor.dtype] += tensor.stop - tensor.start
    return DTYPES[nbytes.most_common(1)[0][0]]


def rename_tensors(
    checkpoint: Checkpoint, source: Source, config: PLTConfig
) -> tuple[dict[str, StoredTensor], list[str]]:
    """The source's tensors under the names of the PLT, and those that are dropped."""
    kept: dict[str, StoredTensor] = {}
    dropped = []
    for name, tensor in checkpoint.tensors.items():
        new_name = source.rename(name)
        if new_name in kept:
            raise ValueError(f"{named(name)} and {named(kept[new_name].name)} both become {named(new_name)}.")
        if new_name is None:
            dropped.append(name)
        else:
            kept[new_name] = tensor
    if config.tie_word_embeddings and "lm_head.weight" in kept and "model.embed_tokens.weight" in kept:
        dropped.append(kept.pop("lm_head.weight").name)
    return kept, dropped


def expected_shapes(config: PLTConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a PLT of this config saves."""
    with torch.device("meta"):
        model = PLTForCausalLM(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes
