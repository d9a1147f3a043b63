"""SIGINT and SIGTERM as a flag that the loop looks at between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["StopFlag", "stop_requests"]


class StopFlag:
    """`name` of the signal that asked us to stop, None before."""

    name: str | None = None


@contextlib.contextmanager
def stop_requests() -> Iterator[StopFlag]:
    """Collect SIGINT and SIGTERM while the block runs; a second SIGINT raises KeyboardInterrupt as usual.

    Outside the main thread Python delivers no signals, and the flag stays down.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if flag.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.name = signal.Signals(number).name

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
