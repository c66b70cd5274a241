# SPDX-License-Identifier: Apache-2.0
"""A folder of safetensors files, and the tensors in it."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..error_text import named, shown, some

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DEPTH = 100  # levels of nested lists and objects; Python copies and prints a few hundred


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file; `dtype` is one of `DTYPES`."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    # kept open: opening a file takes time for every tensor in it, and a mixture of experts has thousands
    opened: Any = field(compare=False, repr=False)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def load(self) -> Tensor:
        """The tensor, mapped from the file."""
        return self.opened.get_tensor(self.name)


@dataclass(frozen=True)
class Checkpoint:
    """Config and tensors of a folder, read from headers only; `tensors` are in file order."""

    folder: Path
    config: dict
    tensors: dict[str, StoredTensor]

    @property
    def files(self) -> list[Path]:
        return list(dict.fromkeys(tensor.file for tensor in self.tensors.values()))

    @property
    def nbytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def read_json(path: Path) -> dict:
    """A JSON object.

    Raises:
        ValueError: the file is missing, is not JSON, is nested too deep, or is not an object.
    """
    if not path.is_file():
        raise ValueError(f"`{path.name}` is missing in {path.parent}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check_depth(content)
    except RecursionError as error:
        raise ValueError(f"{path} must nest lists and objects at most {DEPTH} levels deep, got more.") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def check_depth(content: object) -> None:
    """RecursionError if lists and objects are nested more than `DEPTH` levels deep."""
    level = [content]
    for _ in range(DEPTH + 1):
        lists = [item if isinstance(item, list) else item.values() for item in level if isinstance(item, list | dict)]
        level = [item for inner in lists for item in inner]
        if not level:
            return
    raise RecursionError


def open_checkpoint(folder: Path, weights: Path | None = None) -> Checkpoint:
    """Read the config of a folder and the headers of its weights.

    Args:
        folder: with `config.json` and safetensors files.
        weights: another folder with the safetensors files.

    Raises:
        ValueError: a file is missing, truncated or corrupt; the index names a file outside the folder, or does not
            agree with the files; there is no tensor, or one that is not of a float type.
    """
    config = read_json(folder / "config.json")
    folder = weights or folder
    tensors: dict[str, StoredTensor] = {}
    for file, listed in weight_files(folder, SINGLE_FILE, INDEX_FILE).items():
        stored = {tensor.name: tensor for tensor in read_header(file)}
        if listed is not None and listed != set(stored):
            listed_only, stored_only = sorted(listed - set(stored)), sorted(set(stored) - listed)
            raise ValueError(
                f"{INDEX_FILE} and {file.name} must name the same tensors; only in the index: {some(listed_only)}, "
                f"only in the file: {some(stored_only)}."
            )
        tensors |= stored
    if not tensors:
        raise ValueError(f"{folder} must hold weights, got files without a tensor.")
    return Checkpoint(folder, config, tensors)


def weight_files(folder: Path, single_file: str, index_file: str) -> Mapping[Path, set[str] | None]:
    """The weight files of a folder, and the tensors that the index lists for each; None without an index.

    Raises:
        ValueError: there is neither the single file nor the index, or the index names no files.
    """
    if (folder / single_file).is_file():
        return {folder / single_file: None}
    if not (folder / index_file).is_file():
        raise ValueError(f"{folder} has neither {single_file} nor {index_file}.")
    weight_map = read_json(folder / index_file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{folder / index_file} must have a `weight_map` that names files.")
    files: dict[Path, set[str]] = {}
    for tensor_name, file_name in weight_map.items():
        files.setdefault(file_inside(folder, file_name, index_file), set()).add(tensor_name)
    return files


def file_inside(folder: Path, name: str, index_file: str) -> Path:
    """The path of a file that an index names; it must not lead out of the folder."""
    is_plain = isinstance(name, str) and PurePosixPath(name).name == name == PureWindowsPath(name).name
    if not is_plain or name in ("", ".."):
        raise ValueError(f"{index_file} must name files in its own folder, got {shown(name)}.")
    if not (folder / name).is_file():
        raise ValueError(f"{index_file} names {shown(name)}, which is missing in {folder}.")
    return folder / name


def shard_name(number: int, count: int) -> str:
    """The name of one of `count` safetensors files, numbered from 1."""
    return SINGLE_FILE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def write_index(folder: Path, weight_map: dict[str, str], total_size: int) -> None:
    """Write the file name of every tensor and the bytes of all, unless there is only the single file."""
    if set(weight_map.values()) == {SINGLE_FILE}:
        return
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def read_header(file: Path) -> Iterator[StoredTensor]:
    """The tensors of one safetensors file, in file order; the library checks that they fit the file."""
    try:
        opened = safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or corrupt: {error}") from error
    for name in opened.offset_keys():
        tensor = opened.get_slice(name)
        dtype = tensor.get_dtype()
        if dtype not in DTYPES:
            raise ValueError(
                f"{named(name)} in {file.name} has dtype {dtype}; supported are {', '.join(DTYPES)}. "
                "Quantized checkpoints must be dequantized first."
            )
        yield StoredTensor(name, file, dtype, tuple(tensor.get_shape()), opened)
