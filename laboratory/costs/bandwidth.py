# SPDX-License-Identifier: Apache-2.0
"""The speed at which a device reads its memory, which bounds a decode step: it reads all weights once."""

import statistics
from collections.abc import Callable

import torch
from torch.utils.benchmark import timer

from measuring_plt.turns import take_turns

READ = 2**28  # bytes: more than caches hold, so that every read comes from memory
READS = 15


def reader(device: torch.device) -> Callable[[], object]:
    """A sample that reads `READ` bytes, with the threads that products have, and computes next to nothing."""
    numbers = torch.ones(READ // 4, device=device)
    return numbers.amax  # the sum and the norm take as long, one thread or two: it is memory that they wait for


def read_bandwidth(device: torch.device, clock: Callable[[], float] = timer) -> float:
    """Bytes per second, the median of `READS` reads.

    Args:
        clock: seconds; `torch.utils.benchmark.timer` first waits for the accelerator, if there is one.
    """
    rounds = take_turns({"reading": reader(device)}, READS, "Reading memory", clock=clock)
    return 1000 * READ / statistics.median(line["reading"] for line in rounds)
