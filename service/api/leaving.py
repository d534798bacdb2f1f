"""Letting go of those who wait, as soon as the process is asked to stop.

Uvicorn tells an application that it stops only when every request has been answered, so an open event
stream would hold it up until it is torn down. Its signal handlers are therefore preceded by one of ours.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT)
Handler = Callable[[int, FrameType | None], object]


@contextmanager
def called_before_stopping(leave: Callable[[], None]) -> Iterator[None]:
    """Call `leave` when a signal asks the process to stop, and then the handler that was there."""
    if threading.current_thread() is not threading.main_thread():  # no signal arrives there (a test's server)
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, _followed_by(handler, leave))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _followed_by(handler: Handler, leave: Callable[[], None]) -> Handler:
    def leave_and_handle(number: int, frame: FrameType | None) -> None:
        leave()
        handler(number, frame)

    return leave_and_handle
