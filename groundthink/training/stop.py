"""A graceful stop: the first signal is noted, the second interrupts."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class StopSignal:
    """Holds the name of the signal that arrived, or None."""

    def __init__(self) -> None:
        self.name: str | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Signal handler. A second signal raises KeyboardInterrupt, for whoever cannot wait."""
        del frame
        if self.name is not None:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignal]:
    """Note SIGINT and SIGTERM instead of dying of them. Outside the main thread nothing is changed."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
