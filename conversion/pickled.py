# SPDX-License-Identifier: Apache-2.0
"""Pickle weights, on request: read without running what a pickle may hold, and written as safetensors."""

import pickle
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm

from conversion_plt.checkpoint import INDEX_FILE, SINGLE_FILE, shard_name, weight_files, write_index

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
    weight_map, total = {}, 0
    for number, file in enumerate(tqdm(files, desc="Reading pickles", unit="file"), start=1):
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{file} is corrupt, or holds more than tensors: {error}") from error
        if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
            raise ValueError(f"{file} must hold a dictionary of tensors.")
        name = shard_name(number, len(files))
        # tied tensors share memory in a pickle, which safetensors refuses
        save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, target / name)
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    write_index(target, weight_map, total)
