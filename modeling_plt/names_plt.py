# SPDX-License-Identifier: Apache-2.0
"""Things that have two names, and parts of a folder that a model does not load.

A cache is `past_key_values` in this package, and `cache`, as transformers says since 5.24. A gate's weights have two
published names.
"""

import inspect
import re
from collections.abc import Callable
from functools import wraps
from typing import Any, Self, TypeVar

from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask

Result = TypeVar("Result")

OURS, NEW = CACHE_NAMES = ("past_key_values", "cache")

# what the installed transformers says, in the arguments of `generate` and in outputs; UNTIL transformers 5.24, which
# says `cache` and takes our name with a warning, to be an error in 5.40
THEIRS = NEW if NEW in inspect.signature(create_causal_mask).parameters else OURS


def call_it(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments with the cache, if there is one, under this name.

    Raises:
        ValueError: it is there under both names.
    """
    given = [known for known in CACHE_NAMES if kwargs.get(known) is not None]
    if len(given) > 1:
        raise ValueError("`past_key_values` and `cache` are two names of one argument; give one of them, got both.")
    renamed = {key: value for key, value in kwargs.items() if key not in CACHE_NAMES}
    if given:
        renamed[name] = kwargs[given[0]]
    return renamed


def gets_it_as(name: str) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Let a function that takes the cache under this name be given it under either."""

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @wraps(function)
        def renamed(*args: Any, **kwargs: Any) -> Result:
            return function(*args, **call_it(name, kwargs))

        return renamed

    return decorate


# The second published name of a gate's weights is read as ours and never written.
PUBLISHED_GATE, GATE = r"\.loop_gate_proj\.", ".plt_gate."


class ReadsBothGateNames(PreTrainedModel):
    @classmethod
    def from_pretrained(cls, *args: Any, key_mapping: dict[str, str] | None = None, **kwargs: Any) -> Self:
        """As in transformers, with the gates under either name."""
        return super().from_pretrained(*args, key_mapping={PUBLISHED_GATE: GATE} | (key_mapping or {}), **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers, which would write names as they were read: the gates get ours."""
        if used := getattr(self, "_weight_conversions", None):
            self._weight_conversions = [rename for rename in used if GATE not in rename.target_patterns]
        super().save_pretrained(*args, **kwargs)


# A model that an override leaves without a part of its folder does not save itself as if that were all.
# tensors that a config decides about: those of layers, and the two scales; a head goes with the class that is loaded
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
