"""The child's ear: a thread that hears the supervisor, and ends the process when it hears nothing.

Three things end a child whose supervisor is gone, each enough by itself:

- the kernel, which kills it when the fork server that made it ends (`die_with_parent`); and the
  fork server ends when the Celery process does, for nobody else holds its "alive" pipe open,
- the end of file on the pipe, at once,
- silence: a supervisor that is frozen renews no lease and sends no beat, and when the lease has
  run out another worker may have the job.
"""

import os
import signal
import threading
import time
from dataclasses import dataclass

from workers.pipe import Beat, Channel, StopRequest

ORPHANED = 75  # exit code: EX_TEMPFAIL


@dataclass(frozen=True)
class Lease:
    """For how many seconds the child may work after `since` (monotonic clock) without hearing a beat."""

    since: float
    seconds: float


class Lifeline:
    """Listens on a thread. `stop_requested` is set once the supervisor asks for a stop."""

    def __init__(self, channel: Channel, lease: Lease | None) -> None:
        self.channel = channel
        self.stop_requested = threading.Event()
        self._since = 0.0 if lease is None else lease.since
        self._seconds = None if lease is None else lease.seconds

    def start(self) -> None:
        """Begin to listen."""
        threading.Thread(target=self._listen, name="lifeline", daemon=True).start()

    def _left(self) -> float | None:
        return None if self._seconds is None else self._since + self._seconds - time.monotonic()

    def _listen(self) -> None:
        while True:
            left = self._left()
            if left is not None and left <= 0:
                end_this_process()
            try:
                if self.channel.poll(left):
                    self._hear()
            except (EOFError, OSError):
                end_this_process()

    def _hear(self) -> None:
        message = self.channel.receive()
        if isinstance(message, Beat):
            self._since = message.at
        elif isinstance(message, StopRequest):
            self.stop_requested.set()


def end_this_process() -> None:
    """End at once, with every process of this one's group."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(ORPHANED)
