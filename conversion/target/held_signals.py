# SPDX-License-Identifier: Apache-2.0
"""Holding signals back while something runs that must not be interrupted."""

import signal
import threading
from types import FrameType


class HeldSignals:
    """A block in which SIGINT and SIGTERM wait while `waiting` is true, and are delivered at its end."""

    def __init__(self) -> None:
        self.waiting = True
        self.came: list[int] = []
        self.handlers = {}

    def __enter__(self) -> "HeldSignals":
        if threading.current_thread() is threading.main_thread():  # no other thread gets signals
            handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            self.handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
            for number in self.handlers:
                signal.signal(number, self.handle)
        return self

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.waiting:
            self.came.append(number)
        else:
            self.handlers[number](number, frame)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        for number in self.came:
            signal.raise_signal(number)
