# SPDX-License-Identifier: Apache-2.0
"""The two names of a cache: `past_key_values`, as in this package, and `cache`, as transformers says since 5.24.

Every function that transformers, or a caller, may give a cache under either name is decorated here; nothing else
knows that there are two.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from transformers.masking_utils import create_causal_mask

Result = TypeVar("Result")

OURS, NEW = CACHE_NAMES = ("past_key_values", "cache")

# what the installed transformers says: in the arguments of `generate` and in outputs
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
