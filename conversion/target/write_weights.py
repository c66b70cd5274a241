# SPDX-License-Identifier: Apache-2.0
"""Writing the weights as safetensors: what is kept is mapped from the source's files and never rounded."""

from collections.abc import Callable
from pathlib import Path

from huggingface_hub.serialization import split_state_dict_into_shards_factory
from safetensors.torch import save_file

from ..plan.plan import Part, Plan
from ..reading.checkpoint import write_index

LARGEST = 2_000_000_000  # bytes of a file; so much of what is computed is in memory, and none of what is kept


def write_weights(plan: Plan, folder: Path, advance: Callable[[int], object]) -> None:
    """Write the tensors of a plan, and an index if they need several files.

    Args:
        advance: called with the number of bytes after each file.
    """
    parts = {part.name: part for part in plan.parts()}
    files = split_state_dict_into_shards_factory(
        parts, get_storage_size=Part.size_of, filename_pattern="model{suffix}.safetensors", max_shard_size=LARGEST
    )
    weight_map: dict[str, str] = {}
    for file, names in files.filename_to_tensors.items():
        weight_map |= dict.fromkeys(write_file([parts[name] for name in names], folder / file), file)
        advance(sum(parts[name].nbytes for name in names))
    write_index(folder, weight_map, files.metadata["total_size"])


def write_file(parts: list[Part], file: Path) -> list[str]:
    """Write one file; returns the names of its tensors, which are in memory no longer."""
    tensors = {name: tensor for part in parts for name, tensor in part.load().items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return list(tensors)
