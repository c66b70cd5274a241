# SPDX-License-Identifier: Apache-2.0
"""Writing the weights: bytes go from file to file, so that a tensor is never held or rounded."""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from .checkpoint import StoredTensor, read_header, shard_name, write_index

CHUNK = 1 << 18  # bytes read at once: as fast as a plain copy; from 1 MB on, new memory makes it four times slower


def write_weights(
    kept: dict[str, StoredTensor], added: dict[str, Tensor], folder: Path, advance: Callable[[int], object]
) -> None:
    """Write safetensors files, and an index if there is more than one.

    Args:
        kept: new name -> tensor of the source; a file whose tensors all stay under their names is copied.
        added: new tensors, for a file of their own.
        advance: is told how many bytes were written.
    """
    by_file: dict[Path, dict[str, StoredTensor]] = {}
    for name, tensor in kept.items():
        by_file.setdefault(tensor.file, {})[name] = tensor
    shards = [*by_file.values(), *([added] if added else [])]
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file_name = shard_name(number, len(shards))
        if shard is added:
            save_file(added, folder / file_name, metadata={"format": "pt"})
        else:
            copy_shard(shard, folder / file_name, advance)
        weight_map |= dict.fromkeys(shard, file_name)
    total = sum(tensor.stop - tensor.start for tensor in kept.values())
    total += sum(tensor.nbytes for tensor in added.values())
    write_index(folder, weight_map, total)


def copy_shard(shard: dict[str, StoredTensor], target: Path, advance: Callable[[int], object]) -> None:
    """Copy the tensors of one source file: the file as it is, or their bytes behind a new header."""
    source = next(iter(shard.values())).file
    tensors = sorted(shard.items(), key=lambda item: item[1].start)
    is_unchanged = [name for name, _ in tensors] == [tensor.name for tensor in read_header(source)]
    with open(source, "rb") as reader, open(target, "wb") as writer:
        if is_unchanged:
            copy_range(reader, writer, 0, source.stat().st_size, advance)
            return
        writer.write(make_header(tensors))
        for _, tensor in tensors:
            copy_range(reader, writer, tensor.start, tensor.stop, advance)


def make_header(tensors: list[tuple[str, StoredTensor]]) -> bytes:
    """The head of a safetensors file: its length, then JSON that says where each tensor lies behind it."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in tensors:
        stop = position + tensor.stop - tensor.start
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, stop]}
        position = stop
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
