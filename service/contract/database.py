"""The engine, its sessions, and the database's clock.

Leases are judged by the database's clock alone, so that a worker whose own clock is wrong can
neither steal a lease nor keep one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, Float, create_engine, event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import OperationalError, TimeoutError  # noqa: A004  raised when the pool has no connection left
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement

from service.contract.errors import Unavailable

WRITE = "stillhouse_write"
POOL_SIZE = 40  # as many as there are threads for requests (anyio's default)


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
    """A pool of connections. Every method opens a transaction that ends at the with-block's end.

    The pool has a connection for each thread that answers requests, so that none waits for another's.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        options: dict[str, Any] = {"connect_args": {"timeout": 30}} if self.is_sqlite else {"pool_pre_ping": True}
        options |= {"pool_size": POOL_SIZE, "max_overflow": 0}
        if not self.is_sqlite and parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        self.engine = create_engine(parsed, **options)
        self._reading: dict[str, Any] = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        if self.is_sqlite:
            _speak_sqlite(self.engine)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that reads one consistent state."""
        with self._session(**self._reading) as session:
            yield session

    @contextmanager
    def glance(self) -> Iterator[Connection]:
        """What `read` is, for plain rows: without a session, which costs more than a small query."""
        with self._connection(**self._reading) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that writes; on SQLite it takes the one writer's place from its start."""
        with self._session(**{WRITE: True}) as session:
            yield session

    @contextmanager
    def _session(self, **options: Any) -> Iterator[Session]:
        with self._connection(**options) as connection, Session(connection, expire_on_commit=False) as session:
            yield session
            session.flush()
            session.expunge_all()

    @contextmanager
    def _connection(self, **options: Any) -> Iterator[Connection]:
        try:
            with self.engine.connect().execution_options(**options) as connection, connection.begin():
                yield connection
        except OperationalError as error:  # gone, busy, or the loser of a deadlock: in each a retry can help
            raise Unavailable(f"the database does not answer: {error.orig}") from error
        except TimeoutError as error:
            raise Unavailable("every connection to the database is in use; ask again in a moment") from error

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
