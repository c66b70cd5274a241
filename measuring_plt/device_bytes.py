# SPDX-License-Identifier: Apache-2.0
"""Bytes of a device: on a GPU what PyTorch allocates there; on a CPU those of this process, with all its libraries."""

import os
import resource
import sys
from pathlib import Path

import torch

RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes
SELF = Path("/proc/self")


def held_bytes(device: torch.device) -> int:
    """Bytes held now; on a CPU the resident set, which only Linux tells."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int((SELF / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(device: torch.device) -> int:
    """Bytes held at most, since `forget_peak`; on a CPU other than Linux's since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return RSS_UNIT * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak(device: torch.device) -> None:
    """Count anew from what is allocated now, where that can be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        (SELF / "clear_refs").write_text("5")  # the largest resident set becomes the present one


def free_bytes(device: torch.device) -> int:
    """Bytes that nobody uses, whatever this process has reserved."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
