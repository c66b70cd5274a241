# SPDX-License-Identifier: Apache-2.0
"""Writing the weights: the bytes of kept tensors go from file to file, never held in memory or rounded."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..plan.computed import Derivation
from ..plan.plan import Plan
from ..reading.checkpoint import DTYPES, StoredTensor, read_header, shard_name, write_index

CHUNK = 1 << 18  # bytes read at once: as fast as a plain copy; from 1 MB on, allocations make it four times slower
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_weights(plan: Plan, folder: Path, advance: Callable[[int], object]) -> None:
    """Write a safetensors file for every file of the source, one for new tensors, and an index if there are several.

    Args:
        advance: called with the number of bytes after each write.
    """
    files = dict.fromkeys([tensor.file for tensor in plan.kept.values()] + [made.file for made in plan.derived])
    count = len(files) + bool(plan.added)
    weight_map, total = {}, 0
    for number, file in enumerate(files, start=1):
        kept = {name: tensor for name, tensor in plan.kept.items() if tensor.file == file}
        derived = [derivation for derivation in plan.derived if derivation.file == file]
        sizes = write_shard(file, kept, derived, folder / shard_name(number, count), advance)
        weight_map |= dict.fromkeys(sizes, shard_name(number, count))
        total += sum(sizes.values())
    if plan.added:
        save_file(plan.added, folder / shard_name(count, count), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(plan.added, shard_name(count, count))
        total += sum(tensor.nbytes for tensor in plan.added.values())
    write_index(folder, weight_map, total)


def write_shard(
    source: Path,
    kept: dict[str, StoredTensor],
    derived: list[Derivation],
    target: Path,
    advance: Callable[[int], object],
) -> dict[str, int]:
    """Write what comes from one file of the source; returns the bytes of every tensor.

    The file is copied as it is if all its tensors stay under their names. Otherwise a new header is followed by the
    bytes of those that are kept, and then by those that are computed.
    """
    tensors = sorted(kept.items(), key=lambda item: item[1].start)
    outlines = {name: tensor for derivation in derived for name, tensor in derivation.outline.items()}
    entries = [(name, tensor.dtype, tensor.shape, tensor.nbytes) for name, tensor in tensors]
    entries += [(name, DTYPE_NAMES[tensor.dtype], tensor.shape, tensor.nbytes) for name, tensor in outlines.items()]
    sizes = {name: nbytes for name, *_, nbytes in entries}
    with open(source, "rb") as reader, open(target, "wb") as writer:
        if list(sizes) == [tensor.name for tensor in read_header(source)] and not derived:
            copy_range(reader, writer, 0, source.stat().st_size, advance)
            return sizes
        writer.write(make_header(entries))
        for _, tensor in tensors:
            copy_range(reader, writer, tensor.start, tensor.stop, advance)
        for derivation in derived:
            for tensor in derivation.compute().values():
                writer.write(tensor.flatten().view(torch.uint8).numpy())
                advance(tensor.nbytes)
    return sizes


def make_header(entries: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """The head of a safetensors file: its length, then JSON that says where the bytes of each tensor are.

    Args:
        entries: name, dtype, shape and bytes of each tensor, in the order of the file.
    """
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, dtype, shape, nbytes in entries:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        position += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text


def copy_range(reader, writer, start: int, stop: int, advance: Callable[[int], object]) -> None:
    """Copy the bytes from `start` to `stop`."""
    reader.seek(start)
    while start < stop:
        chunk = reader.read(min(CHUNK, stop - start))
        if not chunk:
            raise ValueError(f"{reader.name} ended {stop - start} bytes early.")
        writer.write(chunk)
        start += len(chunk)
        advance(len(chunk))
