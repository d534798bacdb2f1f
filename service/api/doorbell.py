"""Ringing the queue from one thread, after the commit and beside the answer.

The row is the truth and the sweep rings again for whatever was missed, so a broker that is down or
slow costs a client nothing: the answer is 201 all the same, and the log says why nobody was rung.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import structlog
from celery import Celery

from service.contract.errors import Unavailable
from service.contract.queue import Queue, ring

MAX_WAITING = 10_000  # with the broker down for long, older rings are left to the sweep

log = structlog.get_logger("stillhouse.doorbell")


class Doorbell:
    """Rings in the order of the commits."""

    def __init__(self, celery: Celery) -> None:
        self._celery = celery
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="doorbell")
        self._waiting = 0

    def ring(self, queue: Queue, identifier: str) -> None:
        """Say soon that there is work. Never raises and never waits."""
        if self._waiting >= MAX_WAITING:
            log.warning("not_rung", queue=queue, id=identifier, reason="too many rings wait for the broker")
            return
        self._waiting += 1
        self._thread.submit(self._ring, queue, identifier)

    def _ring(self, queue: Queue, identifier: str) -> None:
        try:
            ring(self._celery, queue, identifier)
        except Unavailable as error:
            log.warning("not_rung", queue=queue, id=identifier, reason=error.detail)
        except Exception as error:  # noqa: BLE001  a broker's library may raise anything; the sweep rings again
            log.warning("not_rung", queue=queue, id=identifier, reason=f"{type(error).__name__}: {error}")
        finally:
            self._waiting -= 1

    def flush(self) -> None:
        """Return when everything before has been rung."""
        done: Future[None] = self._thread.submit(lambda: None)
        done.result()

    def close(self) -> None:
        """Leave what has not been rung to the sweep."""
        self._thread.shutdown(wait=False, cancel_futures=True)
