"""A new data folder from a backup: verified byte by byte, and ready to be served.

An archive is read from its beginning to its end, once. Of its members only names and bytes are used,
and of the names only those that a backup writes: whatever else an archive says changes no file. The
database comes into place last; a restore that fails leaves an empty folder.

What ran when the backup was made has no worker here: jobs return to the queue without losing an
attempt, and go on from their checkpoints.
"""

import hashlib
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pydantic import ValidationError
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from service.backup import DATABASE, FILES, FORMAT, MANIFEST, Manifest
from service.contract import jobs, resources
from service.contract.database import Database, clock
from service.contract.errors import Conflict, DigestMismatch, Invalid, Unavailable
from service.contract.leases import Claim, LeasedRecord
from service.contract.migrate import migrate, revisions
from service.contract.records import DatasetRecord, JobRecord, JobState, ModelRecord, ResourceState, WorkerRecord
from service.contract.retention import references
from service.contract.settings import Settings
from service.contract.storage import LocalStorage, flush, open_storage
from service.data_folder import exclusive

BLOCK_BYTES = 1 << 20
MAX_MANIFEST_BYTES = 256 << 20
LEASE_SECONDS = 60.0  # for the moment in which the jobs are given back
CONTENT = re.compile(rf"{FILES}/([0-9a-f]{{2}})/(\1[0-9a-f]{{62}})")
REASON = "its worker was left behind: this service was restored from a backup"


@dataclass
class Restored:
    """What came out of an archive."""

    manifest: Manifest
    counts: dict[str, int]  # of rows, by what they are
    given_back: list[str]  # jobs that ran when the backup was made


@dataclass
class _Contents:
    """What has been read so far."""

    database_sha256: str | None = None
    manifest: Manifest | None = None
    files: dict[str, int] = field(default_factory=dict)


def restore(archive: Path, data_dir: Path) -> Restored:
    """Make a data folder of a backup. Raises Invalid, Conflict, DigestMismatch, Unavailable."""
    if not archive.is_file():
        raise Invalid(f"there is no archive {archive}")
    with _new_folder(data_dir):
        settings = Settings(data_dir=data_dir.resolve())
        storage = open_storage(settings.storage)
        partial = data_dir / f"{DATABASE}.partial"
        found = _read(archive, storage, partial)
        manifest = _verified(found)
        _check_database(partial, manifest, found)
        flush(partial)
        partial.rename(data_dir / DATABASE)
        migrate(settings.database)
        counts, given_back = _settle(settings)
    return Restored(manifest, counts, given_back)


@contextmanager
def _new_folder(data_dir: Path) -> Iterator[None]:
    """Make a folder, or take an empty one, and hold its lock; should anything go wrong, leave it empty."""
    for name in ("STILLHOUSE_DATABASE_URL", "STILLHOUSE_STORAGE_URL"):
        if os.environ.get(name):
            raise Invalid(f"a backup is restored into a data folder of its own; unset {name}")
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(data_dir.iterdir()):
        raise Conflict(f"{data_dir} is not empty; name a new folder with --data")
    with exclusive(data_dir):
        if {path.name for path in data_dir.iterdir()} != {"lock"}:
            raise Conflict(f"{data_dir} is being used by another process; name a new folder with --data")
        try:
            yield
        except BaseException:
            for path in data_dir.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise


# The archive -------------------------------------------------------------------------------------


def _read(path: Path, storage: LocalStorage, database: Path) -> _Contents:
    found = _Contents()
    try:
        with tarfile.open(path, mode="r|") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else memory grows with every file
                source = archive.extractfile(member) if member.isreg() and not member.issparse() else None
                if source is None or found.manifest is not None:
                    raise Invalid(f"{path} is no backup of Stillhouse: {member.name!r} does not belong into one")
                with source:
                    _take(member, source, found, storage, database)
    except (tarfile.TarError, EOFError) as error:
        raise Invalid(f"{path} cannot be read as a tar file ({error}); it is damaged, or was cut off") from error
    except OSError as error:
        raise Unavailable(f"the backup cannot be restored: {error.strerror or error}") from error
    return found


def _take(member: tarfile.TarInfo, source: IO[bytes], found: _Contents, storage: LocalStorage, database: Path) -> None:
    """Take one member in, whatever else the archive says of it. Raises Invalid."""
    content = CONTENT.fullmatch(member.name)
    if content is not None and content[2] not in found.files:
        temporary = storage.incoming / "restored"
        digest = _copy(source, temporary)
        if digest != content[2]:
            temporary.unlink()
            found.files[content[2]] = -1  # a damaged one, which the manifest must know
            return
        storage.adopt(temporary, digest)
        found.files[digest] = member.size
    elif member.name == DATABASE and found.database_sha256 is None:
        found.database_sha256 = _copy(source, database)
    elif member.name == MANIFEST and member.size <= MAX_MANIFEST_BYTES:
        found.manifest = _manifest(source.read())
    else:
        raise Invalid(f"the archive is no backup of Stillhouse: {member.name!r} does not belong into one")


def _copy(source: IO[bytes], target: Path) -> str:
    """Write a member's bytes to a new file; return their SHA-256."""
    digest = hashlib.sha256()
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while block := source.read(BLOCK_BYTES):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _manifest(text: bytes) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise Invalid(f"the archive's {MANIFEST} cannot be read: {error.error_count()} fields are wrong") from error
    if manifest.format != FORMAT:
        raise Invalid(f"the archive has format {manifest.format}, and this version reads {FORMAT}; use another version")
    return manifest


def _verified(found: _Contents) -> Manifest:
    """Compare what was read with what the archive promises. Raises Invalid, DigestMismatch."""
    manifest = found.manifest
    if manifest is None or found.database_sha256 is None:
        raise Invalid(f"the archive lacks its {MANIFEST} or {DATABASE}: it was cut off, or is no backup of Stillhouse")
    if found.database_sha256 != manifest.database_sha256:
        raise DigestMismatch("the archive's database is not the one that was backed up; use another backup")
    whole = {digest: size for digest, size in found.files.items() if size >= 0}
    if whole != manifest.files:
        wrong = sorted({digest for digest, _ in whole.items() ^ manifest.files.items()})
        raise DigestMismatch(
            f"{len(wrong)} files are not what was backed up: {', '.join(wrong[:5])}; use another backup"
        )
    return manifest


def _check_database(path: Path, manifest: Manifest, found: _Contents) -> None:
    """Refuse a database of a newer version, and one that names what is not in the archive."""
    database = Database(f"sqlite:///{path}")
    try:
        current, known = revisions(database)
        if current not in known:
            raise Conflict(f"Stillhouse {manifest.stillhouse} made the backup, which is newer; restore it with that")
        if missing := references(database) - set(found.files) - set(manifest.damaged):
            raise DigestMismatch(f"the archive lacks {len(missing)} files that its database names; use another backup")
    finally:
        database.close()


# The jobs ----------------------------------------------------------------------------------------


def _settle(settings: Settings) -> tuple[dict[str, int], list[str]]:
    """Give back what workers held that are not here; count what there is."""
    database = Database(settings.database)
    try:
        with database.write() as session:
            session.execute(delete(WorkerRecord))
            given_back = _give_back_jobs(session)
            _give_back_inspections(session)
            kinds = {"models": ModelRecord, "datasets": DatasetRecord, "jobs": JobRecord}
            counts = {name: session.scalar(select(func.count()).select_from(kind)) or 0 for name, kind in kinds.items()}
    finally:
        database.close()
    return counts, given_back


def _give_back_jobs(session: Session) -> list[str]:
    held = _held(session, JobRecord, JobRecord.state.in_(list(jobs.HELD)))
    for claim in held:
        job = session.get_one(JobRecord, claim.id)
        if job.state in {JobState.CANCELLING, JobState.PAUSING}:
            jobs.confirm_stop(session, claim)
        else:
            jobs.hand_back(session, claim, REASON)
    return [claim.id for claim in held]


def _give_back_inspections(session: Session) -> None:
    for record in resources.KINDS.values():
        is_held = (record.state == ResourceState.INSPECTING) & record.lease_until.is_not(None)
        for claim in _held(session, record, is_held):
            resources.hand_back_inspection(session, claim)


def _held(session: Session, record: LeasedRecord, is_held: object) -> list[Claim]:
    """Return the claims of workers that are not here, as if these had just spoken."""
    extended = update(record).where(is_held).values(lease_until=clock() + LEASE_SECONDS)  # type: ignore[arg-type]
    rows = session.execute(extended.returning(record.id, record.epoch).execution_options(synchronize_session=False))
    return [Claim(record, row[0], row[1], "restored", LEASE_SECONDS) for row in rows.all()]
