"""What is old and referred to by nothing goes; what somebody can still ask for stays.

What is never removed here: models, datasets, jobs, reports, the state changes and warnings of jobs, and
every content that a row names. What is removed, each after a time of its own:

    an ended job's lines, stages and metrics     retention_seconds, by default never
    the checkpoints of failed, cancelled jobs    checkpoint_retention_seconds; a retry then begins anew
    idempotency keys                             idempotency_seconds
    contents and temporary files of nobody       a day: what is younger may be on its way to a row

Any process may do this at any time, beside the others: it takes the lock under which contents are
taken in, and looks again under it before it removes anything.
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sqlalchemy import delete, null, select, update
from sqlalchemy.orm import Session

from service.contract import contents
from service.contract.database import Database, clock
from service.contract.jobs import DONE, checkpoint_digests
from service.contract.records import Event, File, IdempotencyRecord, JobRecord, JobState, Metric, Upload
from service.contract.resources import unreferenced
from service.contract.settings import Settings
from service.contract.storage import SHA256, LocalStorage

GRACE_SECONDS = 86400.0  # nothing takes longer from its first byte in the storage to its row
BATCH = 100  # rows in one transaction: others want to write too
KEPT_EVENTS = ("state", "warning")
TEMPORARY = re.compile(r"(put|probe|backup)-[0-9a-f]+")
PART = re.compile(r"(upl_[0-9a-z]{26})\.part")


@dataclass
class Removed:
    """How much went."""

    histories: int = 0  # of jobs
    checkpoints: int = 0  # of jobs
    idempotency_keys: int = 0
    contents: int = 0
    temporary_files: int = 0

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))


def retain(database: Database, storage: LocalStorage, settings: Settings) -> Removed:
    """Remove all that is due. Raises Unavailable."""
    return Removed(
        histories=forget_histories(database, settings.retention_seconds),
        checkpoints=forget_checkpoints(database, storage, settings.checkpoint_retention_seconds),
        idempotency_keys=forget_idempotency_keys(database, settings.idempotency_seconds),
        contents=sum(1 for _ in remove_orphans(database, storage)),
        temporary_files=sum(1 for _ in remove_temporary(database, storage)),
    )


# Rows --------------------------------------------------------------------------------------------


def _in_batches(database: Database, find: Any, forget: Callable[[Session, Sequence[str]], None]) -> int:
    """Forget what a query of ids finds, some at a time, until it finds nothing; return how many there were."""
    count = 0
    while True:
        with database.read() as session:
            found = session.scalars(find.limit(BATCH)).all()
        if not found:
            return count
        with database.write() as session:
            forget(session, found)
        count += len(found)


def _ended_before(seconds: float) -> Any:
    return JobRecord.state.in_(list(DONE)) & (JobRecord.finished_at < clock() - seconds)


def forget_histories(database: Database, after_seconds: float | None) -> int:
    """Remove the log lines, stages and metrics of jobs that ended long ago; return of how many. None keeps all."""
    if after_seconds is None:
        return 0
    detail = Event.kind.not_in(KEPT_EVENTS)
    has_detail = select(Event.id).where(Event.job_id == JobRecord.id, detail).exists()
    has_metrics = select(Metric.job_id).where(Metric.job_id == JobRecord.id).exists()
    old = _ended_before(after_seconds)
    found = select(JobRecord.id).where(old, has_detail | has_metrics)

    def forget(session: Session, candidates: Sequence[str]) -> None:
        # One that is tried again in this moment is not old any more; the lock keeps it as it is.
        ids = session.scalars(select(JobRecord.id).where(JobRecord.id.in_(candidates), old).with_for_update()).all()
        session.execute(delete(Event).where(Event.job_id.in_(ids), detail))
        session.execute(delete(Metric).where(Metric.job_id.in_(ids)))

    return _in_batches(database, found, forget)


def forget_checkpoints(database: Database, storage: LocalStorage, after_seconds: float) -> int:
    """Remove the checkpoints of jobs that failed or were cancelled long ago; return of how many jobs."""
    old = (
        JobRecord.state.in_([JobState.FAILED, JobState.CANCELLED])
        & JobRecord.checkpoint.is_not(null())
        & (JobRecord.finished_at < clock() - after_seconds)
    )
    digests: list[str] = []

    def forget(session: Session, candidates: Sequence[str]) -> None:
        rows = select(JobRecord).where(JobRecord.id.in_(candidates), old).with_for_update()
        for job in session.scalars(rows).all():
            digests.extend(checkpoint_digests(job))
            same = update(JobRecord).where(JobRecord.id == job.id).values(checkpoint=null())
            session.execute(same.execution_options(synchronize_session=False))

    count = _in_batches(database, select(JobRecord.id).where(old), forget)
    contents.release(database, storage, digests)  # a crash before this leaves orphans
    return count


def forget_idempotency_keys(database: Database, after_seconds: float) -> int:
    """Remove the keys of requests that nobody sends again; return how many."""
    old = IdempotencyRecord.created_at < clock() - after_seconds
    with database.read() as session:
        if session.scalar(select(IdempotencyRecord.key).where(old).limit(1)) is None:
            return 0
    with database.write() as session:
        return int(session.execute(delete(IdempotencyRecord).where(old)).rowcount)  # type: ignore[attr-defined]


# Files -------------------------------------------------------------------------------------------


def references(database: Database) -> set[str]:
    """Return the digest of every content that a row names."""
    with database.read() as session:
        found = set(session.scalars(select(File.sha256).distinct()))
        found.update(session.scalars(select(Upload.sha256).where(Upload.sha256.is_not(None))))
        for job in session.scalars(select(JobRecord).where(JobRecord.checkpoint.is_not(null()))):
            found.update(checkpoint_digests(job))
    return found


def stored(storage: LocalStorage) -> Iterator[Path]:
    """Yield every content in the storage."""
    for folder in sorted(storage.root.glob("[0-9a-f][0-9a-f]")):
        for path in sorted(folder.iterdir()):
            if SHA256.fullmatch(path.name):
                yield path


def is_older(path: Path, seconds: float) -> bool:
    """Whether a file was last written so long ago, by this machine's clock."""
    try:
        return time.time() - path.lstat().st_mtime > seconds
    except FileNotFoundError:
        return False


def orphans(database: Database, storage: LocalStorage, older_than: float = GRACE_SECONDS) -> Iterator[Path]:
    """Yield the contents that no row names, and that have lain there for so many seconds."""
    old = [path for path in stored(storage) if is_older(path, older_than)]  # before the rows: what comes later is new
    named = references(database)
    yield from (path for path in old if path.name not in named)


def remove_orphans(database: Database, storage: LocalStorage, older_than: float = GRACE_SECONDS) -> Iterator[Path]:
    """Remove the old contents that no row names, and yield each."""
    for path in orphans(database, storage, older_than):
        with contents.exclusive(database) as session:
            if not unreferenced(session, [path.name]) or not is_older(path, older_than):
                continue  # it was taken in again meanwhile
            storage.delete(path.name)
        yield path


def temporary(database: Database, storage: LocalStorage, older_than: float = GRACE_SECONDS) -> Iterator[Path]:
    """Yield what a crash left in the storage's folder for what is not whole yet."""
    for path in sorted(storage.incoming.iterdir()):
        part = PART.fullmatch(path.name)
        if is_older(path, older_than) and (part or TEMPORARY.fullmatch(path.name)):
            with database.read() as session:
                is_upload = part is not None and session.get(Upload, part[1]) is not None
            if not is_upload:
                yield path


def remove_temporary(database: Database, storage: LocalStorage, older_than: float = GRACE_SECONDS) -> Iterator[Path]:
    """Remove what a crash left and nobody holds, and yield each."""
    for path in temporary(database, storage, older_than):
        if _remove_unheld(path):
            yield path


def _remove_unheld(path: Path) -> bool:
    """Remove a file or folder, unless a process holds its lock (flock)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:  # gone meanwhile
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
