# SPDX-License-Identifier: Apache-2.0
"""Concatenation of tensors whose dtypes differ."""

from collections.abc import Sequence

import torch
from torch import Tensor


def concatenate(parts: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat`, of which autocast refuses float16 beside bfloat16: weights in one, autocast in the other."""
    if len(parts) == 1:
        return parts[0]
    device = parts[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return torch.cat(tuple(parts), dim)
    with torch.autocast(device, enabled=False):
        return torch.cat(tuple(parts), dim)
