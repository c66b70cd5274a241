# SPDX-License-Identifier: Apache-2.0
"""Pickle weights, on request: read without running code from the pickle, and written as safetensors."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..error_text import bytes_of, named, shown
from .checkpoint import DTYPES, INDEX_FILE, SINGLE_FILE, shard_name, weight_files, write_index

PICKLE_FILE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"


def has_only_pickles(folder: Path) -> bool:
    has_safetensors = (folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file()
    return not has_safetensors and any(folder.glob("*.bin"))


def unpickle(folder: Path, target: Path) -> None:
    """Write the pickle weights of a folder as safetensors, one file in memory at a time.

    Raises:
        ValueError: a file is corrupt, or holds anything but tensors.
    """
    files = list(weight_files(folder, PICKLE_FILE, PICKLE_INDEX))
    weight_map: dict[str, str] = {}
    total = 0
    for number, file in enumerate(tqdm(files, desc="Reading pickles", unit="file"), start=1):
        tensors = read_pickle(file)
        name = shard_name(number, len(files))
        # tied tensors share memory in a pickle, which safetensors refuses
        save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, target / name)
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    write_index(target, weight_map, total)


def read_pickle(file: Path) -> dict[str, Tensor]:
    """The tensors of one pickle, by name.

    Raises:
        ValueError: it is corrupt, or holds anything but dense tensors of a float type under names.
    """
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch interprets the bytes, and raises whatever that leads to
        raise ValueError(f"{file} is corrupt, or holds more than tensors: {error}") from error
    if not isinstance(tensors, dict) or not tensors:
        raise ValueError(f"{file} must hold a dictionary of tensors, got {shown(tensors)}.")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{file} must hold tensors under names, got {type(tensor).__name__} under {shown(name)}.")
        if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in DTYPES.values():
            kind = f"{tensor.dtype}, {tensor.layout} on {tensor.device}"
            raise ValueError(f"{named(name)} in {file.name} must be a dense tensor of a float type, got {kind}.")
        if tensor.nbytes > file.stat().st_size:
            raise ValueError(
                f"{named(name)} in {file.name} must be stored in full, got {bytes_of(tensor.nbytes)} in a file of "
                f"{bytes_of(file.stat().st_size)}."
            )
    return tensors
