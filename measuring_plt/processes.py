# SPDX-License-Identifier: Apache-2.0
"""Processes that take turns: each holds a model, and all end with the one that started them."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

# as text, because a process may find the packages of another checkout. It has no other way to learn of an end that the
# starting process could not announce, as one by the system for want of memory
END_WITH_PARENT = """
import multiprocessing, os, threading
parent = multiprocessing.parent_process()
threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
"""


def own_process() -> ProcessPoolExecutor:
    """One process, which starts with the first function that it is given."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=exec, initargs=(END_WITH_PARENT, {}))
