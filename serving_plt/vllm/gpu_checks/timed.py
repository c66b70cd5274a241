# SPDX-License-Identifier: Apache-2.0
"""The models that are timed without a server: of one set of random weights, and of the size that the server has."""

import torch

from measuring_plt.models import Setup
from measuring_plt.rows import ROWS
from measuring_plt.sizes import SIZES

from .scale import Scale

TIMED = [ROWS[name] for name in ("plain", "plt-2", "loop-2")]


def setup_of(scale: Scale) -> Setup:
    fields = SIZES[scale.size] | scale.fields
    return Setup(fields, torch.device(scale.device), getattr(torch, scale.dtype), "sdpa")
