# SPDX-License-Identifier: Apache-2.0
"""A model that an override leaves without a part of its folder does not save itself as if that were all."""

import re
from typing import Any, Self

from transformers import PreTrainedModel

# what a config decides about: layers and what is in them, the two scales; a head goes with the class that is loaded
OF_THE_CONFIG = re.compile(r"(^|\.)(layers\.\d+\..*\.(weight|bias)|embedding_scale|hidden_scale)$")


class SavesAllItWasGiven(PreTrainedModel):
    left_out: tuple[str, ...] = ()  # names in the folder that the config has no place for

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Self:
        """As in transformers; remembers what an override, such as `num_loops=1`, has left out."""
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        model.left_out = tuple(sorted(name for name in info["unexpected_keys"] if OF_THE_CONFIG.search(name)))
        return loaded if output_loading_info else model

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers.

        Raises:
            ValueError: the folder that was loaded has tensors that an override left out; the saved one would not.
        """
        if self.left_out:
            raise ValueError(
                f"A saved folder would not have {len(self.left_out)} tensors of the one that was loaded, such as "
                f"`{self.left_out[0]}`, because the config was overridden; load without the override, or save a model "
                "that is made of `model.config` and loads `model.state_dict()`."
            )
        super().save_pretrained(*args, **kwargs)
