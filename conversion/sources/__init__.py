"""One file per source format; a file added here is a source added."""

import importlib
import pkgutil

from ..error_text import shown
from ..reading.refused_formats import reason_against
from ..source import Source


def all_sources() -> dict[str, Source]:
    """Every source by its `model_type`."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return {module.SOURCE.model_type: module.SOURCE for module in modules}


def find_source(config: dict) -> Source:
    """The source that a config belongs to.

    Raises:
        ValueError: its `model_type` is not one of a source; the message says why, if that is known.
    """
    known = all_sources()
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in known:
        return known[model_type]
    if (reason := reason_against(config)) is not None:
        raise ValueError(f"`model_type` must be one that a PLT can express, got {shown(model_type)}. {reason}.")
    raise ValueError(f"`model_type` must be one of {', '.join(sorted(known))}; got {shown(model_type)}.")
