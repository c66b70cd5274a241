# SPDX-License-Identifier: Apache-2.0
"""A PLT's config as vLLM reads it."""

from typing import Any

from configuration_plt import PLTConfig
from configuration_plt.configuration_plt import other_loops
from configuration_plt.published_plt import OWN as PUBLISHED
from configuration_plt.published_plt import PublishedPLTConfig

from .checks import check_version
from .groups import has_carry


class ServedConfig(PLTConfig):
    """A `PLTConfig` without `layer_types` where there is a carry.

    vLLM gives a layer of type "full_attention" no state besides keys and values, so the carry would get no memory.

    Raises:
        ValueError: the installed vLLM is older than those that this package was tested with.
    """

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        check_version()
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """With `one_pass`: vLLM finds the graphs that it has compiled by what the config holds."""
        return super().to_dict() | {"one_pass": self.one_pass}

    def update(self, config_dict: dict[str, Any]) -> None:
        """Set fields, as `from_dict` does by its keywords: vLLM hands its `hf_overrides` to this.

        Raises:
            ValueError: a name is the publisher's, or nearly that of a field, or values do not fit together.
        """
        others = config_dict.keys() - self.__dataclass_fields__.keys()
        if theirs := sorted(others & {*PUBLISHED}):
            raise ValueError(
                f"`hf_overrides` must have names of PLTConfig's fields, as `num_loops`, got `{theirs[0]}`."
            )
        self.refuse_misspelled(dict.fromkeys(others))
        if "num_loops" in config_dict:
            config_dict = other_loops(self.trained_loops or self.num_loops, config_dict["num_loops"]) | config_dict
        super().update(config_dict)
        self.validate()

    @property
    def has_carry(self) -> bool:
        """Whether later loops read the state of the token before, which must be kept from step to step."""
        return has_carry(self)

    @property
    def goes_together(self) -> bool:
        """Whether steps that decode take all loops at once."""
        return self.one_pass and self.has_carry

    @property  # type: ignore[override]  # with a carry there are none, and only vLLM reads them
    def layer_types(self) -> list[str] | None:
        return None if self.has_carry else ["full_attention"] * self.num_hidden_layers

    @layer_types.setter
    def layer_types(self, value: list[str] | None) -> None:
        """Ignore the types in a saved config: `PLTConfig` wrote them, and they are always the same."""


class ServedPublishedConfig(PublishedPLTConfig):
    """LoopCoder-V2's config; reading it gives a `ServedConfig`."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        read = super().from_dict(config_dict)
        return ServedConfig.from_dict(read.to_dict(), **kwargs)
