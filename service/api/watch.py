"""Waiting for jobs to change: one look at the database for all who wait.

Long polls and event streams are many and long, so none of them holds a thread, a connection or a
transaction. Whoever wakes first reads the versions of all watched jobs in one
query; the others take what it found. Everything that happens to a job touches its row, events
included, so that a job whose version stands still has nothing new to tell.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import anyio
from anyio.to_thread import run_sync
from sqlalchemy import bindparam, select

from service.api.job_views import JobRow
from service.contract.database import Database
from service.contract.records import JobRecord

Version = tuple[Any, ...]
VERSION = (JobRecord.state, JobRecord.epoch, JobRecord.updated_at)
VERSIONS = select(JobRecord.id, *VERSION).where(JobRecord.id.in_(bindparam("ids", expanding=True)))


class Watch:
    """The jobs that somebody waits for, and how they stood at the last look."""

    def __init__(self, database: Database, poll_seconds: float) -> None:
        self._database, self._poll_seconds = database, poll_seconds
        self._waiting: Counter[str] = Counter()
        self._seen: Mapping[str, Version | None] = {}  # None: there is no such job any more
        self._looked_at = -float("inf")
        self.is_closed = False

    async def change(self, job_id: str, known: Version, seconds: float) -> bool:
        """Wait until the job is another than the `known`, for so many seconds at most; return whether it is.

        A watch that was closed waits no more.
        """
        deadline = time.monotonic() + seconds
        with self._watching(job_id):
            while not self.is_closed and (left := deadline - time.monotonic()) > 0:
                await anyio.sleep(min(self._poll_seconds, left))
                await self._look()
                if self._seen.get(job_id, known) != known:
                    return True
        return False

    def close(self) -> None:
        """Send everybody home, because the process is about to end."""
        self.is_closed = True

    @contextmanager
    def _watching(self, job_id: str) -> Iterator[None]:
        self._waiting[job_id] += 1
        try:
            yield
        finally:
            self._waiting[job_id] -= 1
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def _look(self) -> None:
        """Read the versions, unless somebody has just done so or is about it."""
        now = time.monotonic()
        if now - self._looked_at >= self._poll_seconds / 2:
            self._looked_at = now
            self._seen = await run_sync(self._versions, list(self._waiting))

    def _versions(self, job_ids: Sequence[str]) -> Mapping[str, Version | None]:
        with self._database.glance() as connection:
            rows = connection.execute(VERSIONS, {"ids": job_ids}).all()
        return dict.fromkeys(job_ids) | {job_id: tuple(version) for job_id, *version in rows}


def version_of(job: JobRow) -> Version:
    """Return what changes whenever a job does."""
    return job.state, job.epoch, job.updated_at
