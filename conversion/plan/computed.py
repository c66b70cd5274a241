# SPDX-License-Identifier: Apache-2.0
"""Tensors of a PLT that are computed from stored ones, by transformers' conversion operations."""

from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.core_model_loading import WeightConverter, dot_natural_key

from ..error_text import named
from ..reading.checkpoint import DTYPES, StoredTensor


@dataclass(frozen=True)
class Derivation:
    """One use of a converter: the stored tensors that it reads, and the tensors that it makes of them."""

    name: str  # of the first tensor that it makes
    converter: WeightConverter
    stored: tuple[tuple[str, StoredTensor], ...]  # each with the converter's pattern for it, in the order of its list
    config: PreTrainedConfig  # which operations may read

    @cached_property
    def outline(self) -> dict[str, Tensor]:
        """What it makes, by name, without the values: shapes and dtypes.

        Raises:
            ValueError: the operations do not take tensors of these shapes.
        """
        with torch.device("meta"):
            empty = [torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype]) for _, tensor in self.stored]
        try:
            return self.run(empty)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{named(self.name)} cannot be computed from the source: {error}") from error

    def compute(self) -> dict[str, Tensor]:
        """What it makes, by name."""
        return self.run([tensor.load() for _, tensor in self.stored])

    def run(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        converter = deepcopy(self.converter)  # a converter keeps what it is given
        for (pattern, stored), tensor in zip(self.stored, tensors, strict=True):
            # it calls what is callable, and takes tensors as they are
            converter.add_tensor(self.name, stored.name, pattern, tensor)  # type: ignore[arg-type]
        made = converter.convert(self.name, config=self.config)
        return {name: (value[0] if isinstance(value, list) else value).contiguous() for name, value in made.items()}


def find_derivations(
    tensors: dict[str, StoredTensor], converters: tuple[WeightConverter, ...], config: PreTrainedConfig
) -> list[Derivation]:
    """The uses of converters on the tensors of a source; the first converter that a name matches takes it.

    Args:
        tensors: by their names after the source's renames.
    """
    uses: dict[str, tuple[WeightConverter, list]] = {}
    # lists, such as the experts of a layer, by number: transformers loads them in this order too
    for name, tensor in sorted(tensors.items(), key=lambda item: dot_natural_key(item[0])):
        for converter in converters:
            made, pattern = converter.rename_source_key(name)
            if pattern is not None:
                uses.setdefault(made, (converter, []))[1].append((pattern, tensor))
                break
    return [Derivation(made, converter, tuple(stored), config) for made, (converter, stored) in uses.items()]
