"""A database whose clock a test moves: SQLite's julianday, which `clock()` stands on, answers what it is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import event

from service.contract.database import Database
from service.contract.records import Record

EPOCH, DAY = 2440587.5, 86400.0  # the Julian day on which Unix time begins; seconds


@dataclass
class FakeClock:
    """Seconds since 1970, as the database tells them."""

    now: float = 1_000_000_000.0

    def julian(self, _: str) -> float:
        return EPOCH + self.now / DAY


@contextmanager
def database_with_clock(path: Path) -> Iterator[tuple[Database, FakeClock]]:
    """A new SQLite database that flushes nothing, and its clock, which stands still until a test moves it."""
    clock, database = FakeClock(), Database(f"sqlite:///{path}")

    @event.listens_for(database.engine, "connect")
    def _on_connect(connection: Any, _: Any) -> None:
        connection.create_function("julianday", 1, clock.julian)
        connection.execute("PRAGMA synchronous=OFF")

    Record.metadata.create_all(database.engine)
    yield database, clock
    database.close()
