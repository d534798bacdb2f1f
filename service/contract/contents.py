"""Stored contents that rows share: taken in and let go one at a time.

Two rows may name the same bytes. A file goes when the last row that names it has gone; that check
and the removal happen under one lock with every adoption and publication, so that a file that is
being taken in again is never removed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.contract.database import Database
from service.contract.resources import unreferenced
from service.contract.storage import Storage

LOCK = 0x5374696C6C  # names the advisory lock; the bytes of "Still"


def lock(session: Session) -> None:
    """Let no other transaction take contents in, or let them go, until this one ends.

    SQLite has one writer at a time anyway; on PostgreSQL this is an advisory lock.
    """
    if session.get_bind().dialect.name != "sqlite":
        session.execute(select(func.pg_advisory_xact_lock(LOCK)))


@contextmanager
def exclusive(database: Database) -> Iterator[Session]:
    """A writing transaction that no other of its kind runs beside."""
    with database.write() as session:
        lock(session)
        yield session


def release(database: Database, storage: Storage, digests: Sequence[str]) -> None:
    """Remove those contents that no row names any more; call it after the rows' removal is committed."""
    if not digests:
        return
    with exclusive(database) as session:
        for digest in unreferenced(session, digests):
            storage.delete(digest)
