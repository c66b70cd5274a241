# SPDX-License-Identifier: Apache-2.0
"""Bytes that some work takes, in a process of its own, less what the process held before.

The processes are forks of one that has imported what they need, and done nothing: a process that this one started
directly would count this one's memory as its own.
"""

import ctypes
import gc
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import torch

from measuring_plt.device_bytes import forget_peak, held_bytes, peak_bytes

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
RETURNED_AT_ONCE = 65536  # bytes; malloc keeps blocks that are smaller when they are freed
NOT_MEASURED = "Not measured: on a CPU this needs Linux, whose /proc tells and resets the resident set of a process."


class Bytes(NamedTuple):
    """Bytes of some work.

    Attributes:
        held: the bytes of its result, when all else that it had is gone.
        peak: the most bytes while it worked.
    """

    held: int
    peak: int


def can_measure(device: torch.device) -> bool:
    return device.type == "cuda" or sys.platform == "linux"


def how_measured(device: torch.device) -> str:
    """For those who read the numbers."""
    if not can_measure(device):
        return NOT_MEASURED
    if device.type == "cuda":
        return "Each in a process of its own: what PyTorch allocated on the GPU, less what it held before."
    return (
        "Each in a process of its own: the resident set, less what it was before, so that Python and libraries do not "
        "count. All is done once before, so that buffers of libraries do not count either, and freed memory goes back "
        "to the system at once. The peak is reset by /proc/self/clear_refs; small numbers are off by up to half a MB."
    )


def measure_bytes(work: Callable[[], Any], device: torch.device) -> tuple[Bytes, Any]:
    """The bytes that work takes beyond those that this process held before, and its result."""
    clean_up(device)
    before = held_bytes(device)
    forget_peak(device)
    result = work()
    peak = peak_bytes(device)
    clean_up(device)
    return Bytes(held_bytes(device) - before, peak - before), result


def clean_up(device: torch.device) -> None:
    """Give back to the system what is not used any more."""
    gc.collect()
    if device.type == "cpu":
        ctypes.CDLL(None).malloc_trim(0)


def run_alone(function: Callable, *arguments: Any) -> Any:
    """The result of a function of a module, in a process that has done nothing before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, function.__module__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(prepared, torch.get_num_threads(), function, *arguments).result()


def prepared(num_threads: int, function: Callable, *arguments: Any) -> Any:
    torch.set_num_threads(num_threads)
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, RETURNED_AT_ONCE)
    return function(*arguments)
