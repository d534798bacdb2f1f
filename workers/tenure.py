"""Holding a claim: a thread renews its lease, and writes are repeated as long as it lasts.

The thread, not the supervisor's loop, renews, because storing a large file takes longer than a
lease. The end of the lease is counted from before each renewal began, by a clock that never jumps;
so the worker believes its lease over no later than the database does.
"""

import contextvars
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

from sqlalchemy.orm import Session
from structlog import get_logger

from service.contract.database import Database
from service.contract.errors import LeaseLost, Unavailable
from service.contract.leases import Claim

T = TypeVar("T")
A = TypeVar("A")
RETRY_SECONDS = 0.5
log = get_logger(__name__)


class Tenure(Generic[A]):
    """From claim to end of one piece of work; `answer` is what the last renewal returned."""

    def __init__(
        self, database: Database, claim: Claim, renew: Callable[[Session, Claim], A], every: float, since: float
    ) -> None:
        """`since` is the monotonic time before the claim was made; `every` is in seconds."""
        self.claim = claim
        self.answer: A | None = None
        self.since = since
        self.on_renewed: Callable[[float], None] = lambda _: None  # is told when the last renewal began
        self._database = database
        self._renew = renew
        self._every = every
        self._refused = False
        self._over = threading.Event()
        run = contextvars.copy_context().run  # the log's job, attempt and epoch
        self._thread = threading.Thread(target=run, args=(self._keep,), name=f"tenure of {claim.id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    @property
    def lost(self) -> bool:
        """Whether the lease is over, by refusal or by the clock."""
        return self._refused or time.monotonic() >= self.since + self.claim.lease_seconds

    def _keep(self) -> None:
        while not self._over.wait(self._every):
            began = time.monotonic()
            try:
                with self._database.write() as session:
                    self.answer = self._renew(session, self.claim)
            except LeaseLost:
                self._refused = True
                return
            except Unavailable as error:
                log.warning("could not renew the lease", error=error.detail)
                continue
            self.since = began
            self.on_renewed(began)

    def write(self, change: Callable[[Session], T]) -> T:
        """Run one transaction, again and again while the database does not answer. Raises LeaseLost."""
        while True:
            try:
                with self._database.write() as session:
                    return change(session)
            except Unavailable as error:
                log.warning("could not write; trying again", error=error.detail)
            self._pause()

    def persist(self, action: Callable[[], T]) -> T:
        """Run `action` on the storage, again for as long as one lease. Raises Unavailable, LeaseLost."""
        give_up_at = time.monotonic() + self.claim.lease_seconds
        while True:
            try:
                return action()
            except Unavailable as error:
                if time.monotonic() >= give_up_at:
                    raise
                log.warning("could not store; trying again", error=error.detail)
            self._pause()

    def _pause(self) -> None:
        if self.lost:
            raise LeaseLost(f"{self.claim.id}: the lease ran out while the database did not answer")
        self._over.wait(RETRY_SECONDS)
