# SPDX-License-Identifier: Apache-2.0
"""The file for `--expected`: token ids, and the logits that the publisher's code computed for them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..error_text import shown, some


@dataclass(frozen=True)
class Expected:
    """Token ids `[B, T]` and their logits `[B, T, V]`, in float64 or float32."""

    file: Path
    input_ids: Tensor
    logits: Tensor


def read_expected(file: Path, vocab_size: int) -> Expected:
    """Read and check the file.

    Raises:
        ValueError: it is not a safetensors file, or ids or logits are missing, misshapen or out of range.
    """
    if not file.is_file():
        raise ValueError(f"`--expected` must be a safetensors file, got {file}.")
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} must be a safetensors file: {error}") from error
    missing = [name for name in ("input_ids", "logits") if name not in tensors]
    if missing:
        raise ValueError(f"{file} must hold `input_ids` and `logits`, got {some(tensors)}.")
    input_ids, logits = tensors["input_ids"], tensors["logits"]
    if input_ids.dtype not in (torch.int32, torch.int64) or input_ids.dim() != 2 or input_ids.numel() == 0:
        got = f"{input_ids.dtype} {shown([*input_ids.shape])}"
        raise ValueError(f"`input_ids` in {file} must be integers [rows, tokens], got {got}.")
    if not 0 <= input_ids.min() <= input_ids.max() < vocab_size:
        raise ValueError(
            f"`input_ids` in {file} must be between 0 and {vocab_size - 1}, got {input_ids.min()} to "
            f"{input_ids.max()}."
        )
    if not logits.is_floating_point() or logits.shape != (*input_ids.shape, vocab_size):
        raise ValueError(
            f"`logits` in {file} must be floats {[*input_ids.shape, vocab_size]}, got {logits.dtype} "
            f"{shown([*logits.shape])}."
        )
    return Expected(file, input_ids.long(), logits if logits.dtype == torch.float64 else logits.float())
