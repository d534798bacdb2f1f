"""A backup of the embedded default: one tar file with the database and every content that it names.

    stillhouse.db        SQLite's own online copy: one consistent state, taken while the service runs
    files/ab/abcdef…     the contents, each under its SHA-256
    manifest.json        the last member: without it, the archive was cut off

The copy of the database and the links to its contents are made while nobody else may write, so that
nothing is let go between the two; the contents, which never change, are then read from the links.
What is not taken: unfinished uploads (their clients are told to begin anew), caches, logs, and the
broker's messages, which the sweep sends again.
"""

import fcntl
import hashlib
import io
import json
import os
import secrets
import shutil
import sqlite3
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict
from sqlalchemy import make_url

from service.contract import contents
from service.contract.database import Database
from service.contract.errors import Conflict, Invalid, NotFound, Unavailable
from service.contract.migrate import revisions
from service.contract.retention import references
from service.contract.settings import Settings
from service.contract.storage import LocalStorage, flush
from service.doctor.examination import storage_of

FORMAT = 1
DATABASE, MANIFEST, FILES = "stillhouse.db", "manifest.json", "files"


class Manifest(BaseModel):
    """What an archive holds; sizes are in bytes, `made_at` in seconds since 1970."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    stillhouse: str
    revision: str
    made_at: float
    database_sha256: str
    files: dict[str, int]  # the size of each content by its SHA-256
    damaged: tuple[str, ...]  # what the database names, and what was missing or not itself any more


def local_database(settings: Settings) -> Path:
    """Return the file of the database. Raises Invalid where it is not of the embedded default."""
    url = make_url(settings.database)
    if url.get_backend_name() != "sqlite":
        raise Invalid(
            "the database is not SQLite: back it up with its own tools (pg_dump), "
            f"and then copy the storage ({settings.storage}), in this order"
        )
    path = Path(str(url.database))
    if not path.is_file():
        raise Invalid(f"there is no database {path}; name the data folder with --data or STILLHOUSE_DATA_DIR")
    return path


def back_up(settings: Settings, archive: Path) -> Manifest:
    """Write an archive, which is there whole or not at all. Raises Invalid, Conflict, Unavailable."""
    local_database(settings)
    storage = storage_of(settings)
    if archive.exists():
        raise Conflict(f"{archive} exists; name a new file with --to")
    if not archive.absolute().parent.is_dir():
        raise Invalid(f"there is no folder {archive.absolute().parent}")
    partial = archive.with_name(f"{archive.name}.{secrets.token_hex(4)}.partial")
    with _snapshot(settings, storage) as snapshot:
        _make_sure_of_room(snapshot, partial)
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                manifest = _write(snapshot, file)
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, archive)  # unlike a rename, this never replaces what somebody made meanwhile
        finally:
            partial.unlink(missing_ok=True)
    flush(archive.absolute().parent)
    return manifest


# The snapshot ------------------------------------------------------------------------------------


@contextmanager
def _snapshot(settings: Settings, storage: LocalStorage) -> Iterator[Path]:
    """Yield a folder with one state of the database and links to the contents that it names."""
    folder = storage.incoming / f"backup-{secrets.token_hex(8)}"  # on the disk of the contents
    folder.mkdir(mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # else, a day later, it were taken for what a crash left
        (folder / FILES).mkdir()
        database = Database(settings.database)
        try:
            _link(storage, references(database), folder)  # most of the work, while others write
            with contents.exclusive(database):
                _copy_database(settings, folder / DATABASE)
                with _opened(folder / DATABASE) as copy:
                    named = references(copy)
                _link(storage, named, folder)
        finally:
            database.close()
        for path in (folder / FILES).iterdir():
            if path.name not in named:  # it was let go after the first look
                path.unlink()
        (folder / "named.json").write_text(json.dumps(sorted(named)))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _link(storage: LocalStorage, digests: set[str], folder: Path) -> None:
    for digest in digests:
        target = folder / FILES / digest
        if not target.exists():
            try:
                storage.fetch(digest, target)
            except NotFound:  # it is reported as damaged, unless the snapshot does not name it
                continue


def _copy_database(settings: Settings, target: Path) -> None:
    source = f"file:{quote(str(local_database(settings).absolute()))}?mode=ro"
    with closing(sqlite3.connect(source, uri=True)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy)


@contextmanager
def _opened(path: Path) -> Iterator[Database]:
    """A database that nobody else uses; nothing lies beside its file afterwards."""
    database = Database(f"sqlite:///{path}")
    try:
        yield database
    finally:
        database.close()


def _make_sure_of_room(snapshot: Path, archive: Path) -> None:
    needed = sum(path.stat().st_size + 1024 for path in _members(snapshot))
    free = shutil.disk_usage(archive.absolute().parent).free
    if needed > free:
        raise Unavailable(f"the archive takes {needed} bytes and {free} are free in {archive.absolute().parent}")


def _members(snapshot: Path) -> list[Path]:
    return [snapshot / DATABASE, *sorted((snapshot / FILES).iterdir())]


# The archive -------------------------------------------------------------------------------------


class Hashed:
    """A file that is hashed while it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read as the file does."""
        block = self._file.read(size)
        self._hash.update(block)
        return block

    def hexdigest(self) -> str:
        """Return the SHA-256 of what was read."""
        return self._hash.hexdigest()


def _write(snapshot: Path, file: BinaryIO) -> Manifest:
    made_at = time.time()
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        with _opened(snapshot / DATABASE) as copy:
            revision, _ = revisions(copy)
        digest = _add(archive, snapshot / DATABASE, DATABASE, made_at)
        files, damaged = {}, set(json.loads((snapshot / "named.json").read_bytes()))
        for path in sorted((snapshot / FILES).iterdir()):
            found = _add(archive, path, f"{FILES}/{path.name[:2]}/{path.name}", made_at)
            if found == path.name:
                files[path.name] = path.stat().st_size
                damaged.discard(path.name)
        manifest = Manifest(
            stillhouse=version("stillhouse"),
            revision=revision or "",
            made_at=made_at,
            database_sha256=digest,
            files=files,
            damaged=tuple(sorted(damaged)),
        )
        text = manifest.model_dump_json().encode()
        archive.addfile(_entry(MANIFEST, len(text), made_at), io.BytesIO(text))
    return manifest


def _add(archive: tarfile.TarFile, path: Path, name: str, made_at: float) -> str:
    """Append a file; return the SHA-256 of what was written."""
    with path.open("rb") as file:
        hashed = Hashed(file)
        archive.addfile(_entry(name, path.stat().st_size, made_at), hashed)
    archive.members.clear()  # type: ignore[attr-defined]  # else memory grows with every file
    return hashed.hexdigest()


def _entry(name: str, size: int, made_at: float) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o600, int(made_at)
    return entry
