"""The engine, its sessions, and the database's clock.

Leases are judged by the database's clock alone, so that a worker whose own clock is wrong can
neither steal a lease nor keep one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, Float, create_engine, event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement

from service.contract.errors import Unavailable

WRITE = "stillhouse_write"


class clock(FunctionElement[float]):  # noqa: N801  a SQL function, written as one
    """Seconds since 1970 by the database's clock, as it stands when the statement runs."""

    type = Float()
    inherit_cache = True


@compiles(clock, "sqlite")
def _clock_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(clock, "postgresql")
def _clock_postgresql(*_: Any, **__: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


class Database:
    """A pool of connections. `read()` and `write()` are transactions; both end at the with-block's end."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        options: dict[str, Any] = {"connect_args": {"timeout": 30}} if self.is_sqlite else {"pool_pre_ping": True}
        if not self.is_sqlite and parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        self.engine = create_engine(parsed, **options)
        if self.is_sqlite:
            _speak_sqlite(self.engine)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that reads one consistent state."""
        with self._session() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that writes; on SQLite it takes the one writer's place from its start."""
        with self._session(**{WRITE: True}) as session:
            yield session

    @contextmanager
    def _session(self, **options: Any) -> Iterator[Session]:
        try:
            with (
                self.engine.connect().execution_options(**options) as connection,
                connection.begin(),
                Session(connection, expire_on_commit=False) as session,
            ):
                yield session
                session.flush()
                session.expunge_all()
        except DBAPIError as error:
            if error.connection_invalidated or type(error.orig).__name__ == "OperationalError":
                raise Unavailable(f"the database does not answer: {error.orig}") from error
            raise

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def _speak_sqlite(engine: Engine) -> None:
    """Write-ahead log, full durability, and transactions that begin when we say so."""

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # else the driver begins transactions by itself, and late
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        write = connection.get_execution_options().get(WRITE, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
