"""The folder that one `stillhouse serve` owns: its lock, its sockets, its database and the first key."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import make_url

from service.contract.database import Database
from service.contract.errors import Conflict, Invalid
from service.contract.migrate import migrate
from service.contract.settings import Settings
from service.contract.storage import open_storage
from service.keys import create_key, list_keys

LONGEST_SOCKET_PATH = 100  # bytes; the kernel's limit is 107
BROKERS = ("redis://", "rediss://", "redis+socket://", "sentinel://")
OWNER = "local"  # of the key that the first start makes
Say = Callable[[str], None]


@contextmanager
def exclusive(data_dir: Path) -> Iterator[int]:
    """Hold the folder's lock; yield its descriptor. Raises Conflict when another process holds it.

    Valkey inherits the descriptor, so that the folder is free only when its database is closed too.
    """
    descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise Conflict(
                f"{data_dir} is in use by another Stillhouse (process {holder}); stop that one, "
                "or choose another folder with --data"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def socket_in(data_dir: Path) -> Iterator[Path]:
    """Yield where Valkey's socket goes: in the data folder, or in a private folder when that path is too long."""
    path = data_dir / "run" / "valkey.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        yield path
        return
    folder = Path(tempfile.mkdtemp(prefix="stillhouse-"))
    try:
        yield folder / "valkey.sock"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def absolute(settings: Settings, socket_path: Path | None) -> Settings:
    """Return the settings with every URL spelled out, valid in whatever folder a child runs."""
    database = make_url(settings.database)
    if database.get_backend_name() == "sqlite":
        if database.database in {None, "", ":memory:"}:
            raise Invalid("STILLHOUSE_DATABASE_URL names a database in memory, which processes cannot share")
        database = database.set(database=str(Path(str(database.database)).absolute()))
    if socket_path is None and not settings.broker.startswith(BROKERS):
        raise Invalid(f"STILLHOUSE_BROKER_URL must begin with one of {', '.join(BROKERS)}")
    broker = settings.broker if socket_path is None else f"redis+socket://{quote(str(socket_path))}"
    return Settings(
        data_dir=settings.data_dir,
        database_url=database.render_as_string(hide_password=False),
        broker_url=broker,
        storage_url=settings.storage,
    )


def prepare(settings: Settings, *, is_public: bool, say: Say, warn: Say) -> None:
    """Bring the database up to date and see that there is a key."""
    (settings.data_dir / "logs").mkdir(exist_ok=True)
    try:
        open_storage(settings.storage)
    except ValueError as error:
        raise Invalid(str(error)) from None
    migrate(settings.database)
    database = Database(settings.database)
    try:
        with database.write() as session:
            keys = list_keys(session)
            if not keys:
                say(f"API key: {create_key(session, OWNER, ('read', 'submit', 'admin'))}")
    finally:
        database.close()
    if is_public and keys and all(key.revoked_at for key in keys):
        raise Invalid(
            "every API key is revoked; make one (stillhouse keys create OWNER) before listening beyond this machine"
        )
    if is_public:
        warn("warning: other machines can connect, and nothing encrypts the connection; put a TLS proxy in front")
