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

from workers.pipe import Beat, Channel, StopRequest

ORPHANED = 75  # exit code: EX_TEMPFAIL


class Lifeline:
    """Listens on a thread. `stop_requested` is set once the supervisor asks for a stop."""

    def __init__(self, channel: Channel, lease_seconds: float | None = None) -> None:
        """`lease_seconds` is how long after a beat the child may work; None is for work that needs no lease."""
        self.channel = channel
        self.stop_requested = threading.Event()
        self._lease_seconds = lease_seconds
        self._ends_at: float | None = None

    def start(self) -> None:
        """Wait for the first beat, where there are beats, then listen on a thread.

        The first beat says when the lease began. Between that moment and this process's start lies
        perhaps the import of torch: only now does the child know whether the lease still holds.
        """
        if self._lease_seconds is not None:
            self._ends_at = time.monotonic() + self._lease_seconds
            self._hear_or_end()
        threading.Thread(target=self._listen, name="lifeline", daemon=True).start()

    def _listen(self) -> None:
        while True:
            self._hear_or_end()

    def _hear_or_end(self) -> None:
        left = None if self._ends_at is None else self._ends_at - time.monotonic()
        if left is not None and left <= 0:
            end_this_process()
        try:
            if self.channel.poll(left):
                self._hear()
        except (EOFError, OSError):
            end_this_process()

    def _hear(self) -> None:
        message = self.channel.receive()
        if isinstance(message, Beat) and self._lease_seconds is not None:
            self._ends_at = message.at + self._lease_seconds
        elif isinstance(message, StopRequest):
            self.stop_requested.set()


def end_this_process() -> None:
    """End at once, with every process of this one's group."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(ORPHANED)
