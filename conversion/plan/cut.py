# SPDX-License-Identifier: Apache-2.0
"""Which layers of a plain source a PLT has, and which of them loop."""

import re
from dataclasses import dataclass, replace
from typing import Any

from configuration_plt import PLTConfig

from .layer_numbers import spans

LAYER = re.compile(r"^model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Cut:
    """The cut of a source's layers; None leaves it as it is."""

    layers: tuple[int, ...] | None = None  # that are kept, by their numbers in the source
    num_prelude_layers: int | None = None
    num_coda_layers: int | None = None

    def of(self, config: PLTConfig) -> "Cut":
        """The cut of a model; that all its layers are kept need not be said.

        Raises:
            ValueError: the model is not plain, or does not have a layer.
        """
        if self != WHOLE and not is_plain(config):
            raise ValueError(
                "`--prelude`, `--coda` and `--layers` are for plain sources, got one that loops "
                f"{len(config.looped_stage.layers)} of {config.num_hidden_layers} layers."
            )
        if self.layers is not None and self.layers[-1] >= config.num_hidden_layers:
            raise ValueError(
                f"`--layers` must name layers below {config.num_hidden_layers}, the number that the source has, got "
                f"{self.layers[-1]}."
            )
        keeps_all = self.layers is not None and len(self.layers) == config.num_hidden_layers
        return replace(self, layers=None) if keeps_all else self

    def fields(self, config: PLTConfig) -> dict[str, Any]:
        """The fields of a plain model that the cut changes."""
        sizes = {"num_prelude_layers": self.num_prelude_layers, "num_coda_layers": self.num_coda_layers}
        changed: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
        if self.layers is None:
            return changed
        if config.num_experts > 0:  # which layers have them depends on their numbers
            dense = [number for number, layer_idx in enumerate(self.layers) if not config.is_sparse(layer_idx)]
            changed |= {"decoder_sparse_step": 1, "mlp_only_layers": dense or None}
        return changed | {"num_hidden_layers": len(self.layers)}

    def rename(self, name: str) -> str | None:
        """The name of a tensor when layers are numbered anew; None if its layer is left out."""
        found = LAYER.match(name)
        if found is None or self.layers is None:
            return name
        layer_idx = int(found[1])
        if layer_idx not in self.layers:
            return None
        return f"model.layers.{self.layers.index(layer_idx)}.{name[found.end() :]}"

    @property
    def note(self) -> str | None:
        """A sentence for the model card, if layers are left out."""
        if self.layers is None:
            return None
        return (
            f"Of the source's layers, {spans(self.layers)} were kept: the model starts far from its source, and was "
            "compared with these layers of it."
        )


WHOLE = Cut()


def is_plain(config: PLTConfig) -> bool:
    """Whether a model runs its layers once, one after another."""
    return config.most_loops == 1 and config.loop_input == "sum"
