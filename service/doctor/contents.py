"""Rows against files: what is named and not there, and what is there and not named.

The service may run meanwhile. What looks wrong is looked at once more: a row that has gone by then,
with its file, was not wrong.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import null, select

from service.contract.errors import NotFound
from service.contract.records import File, JobRecord, Upload
from service.contract.resources import unreferenced
from service.contract.retention import GRACE_SECONDS, orphans, temporary
from service.contract.storage import hash_file
from service.doctor.findings import Premises, Problem, counted, error, in_bytes, in_time, warning
from service.doctor.locks import is_held

YOUNG_SECONDS = 60.0


@dataclass(frozen=True)
class Named:
    """A content that a row names."""

    sha256: str
    size: int
    by: str


def _of_resources(premises: Premises) -> list[Named]:
    with premises.database.read() as session:
        files = [Named(row.sha256, row.size, f"{row.resource_id}/{row.path}") for row in session.scalars(select(File))]
        complete = select(Upload).where(Upload.sha256.is_not(None))
        return files + [Named(row.sha256 or "", row.offset, row.id) for row in session.scalars(complete)]


def _of_jobs(premises: Premises) -> list[Named]:
    with premises.database.read() as session:
        rows = session.execute(select(JobRecord.id, JobRecord.checkpoint).where(JobRecord.checkpoint.is_not(null())))
        both = [(job_id, each) for job_id, last in rows for each in (last, last.get("previous")) if each is not None]
    return [Named(each["sha256"], each["size"], f"{job_id} step {each['step']}") for job_id, each in both]


def _wrong(premises: Premises, named: list[Named]) -> list[str]:
    """Return what is missing or not what its row says."""
    verdicts: dict[str, str | None] = {}  # of each content only once: many rows may name it
    for each in named:
        if each.sha256 not in verdicts:
            verdicts[each.sha256] = _verdict(premises, each)
    return [f"{each.by}: {verdict} ({each.sha256})" for each in named if (verdict := verdicts[each.sha256])]


def _verdict(premises: Premises, named: Named) -> str | None:
    try:
        size = premises.storage.size(named.sha256)
        if size != named.size:
            verdict = f"has {size} bytes in place of {named.size}"
        elif premises.deep and hash_file(premises.storage.path(named.sha256)).sha256 != named.sha256:
            verdict = "its bytes have changed: they have another SHA-256"
        else:
            return None
    except (NotFound, FileNotFoundError):
        verdict = "is not in the storage"
    except PermissionError:
        verdict = "may not be read by this user"
    with premises.database.read() as session:
        return None if unreferenced(session, [named.sha256]) else verdict


def files(premises: Premises) -> Iterator[Problem]:
    """Whether every file of a model, dataset or upload is what it was."""
    if wrong := _wrong(premises, _of_resources(premises)):
        yield error(
            f"{counted(len(wrong), 'file')} of models, datasets or uploads cannot be used",
            "restore them from a backup, or delete what they belong to and upload it again",
            wrong,
        )


def checkpoints(premises: Premises) -> Iterator[Problem]:
    """Whether every job that is not done could go on where it stood."""
    if wrong := _wrong(premises, _of_jobs(premises)):
        yield warning(
            f"{counted(len(wrong), 'checkpoint')} cannot be used",
            "nothing is lost but time: the job goes on from the checkpoint before, or else begins anew",
            wrong,
        )


def unnamed(premises: Premises) -> Iterator[Problem]:
    """Whether contents lie in the storage that no row names."""
    found = list(orphans(premises.database, premises.storage))
    if found:
        size = sum(path.stat().st_size for path in found if path.exists())
        age = in_time(GRACE_SECONDS)
        yield warning(
            f"{counted(len(found), 'content')} ({in_bytes(size)}) that no row names, older than {age}",
            "--fix removes them; a running service does so every hour",
            [f"{path.name} ({in_time(_age(path))})" for path in found],
        )


def leftovers(premises: Premises) -> Iterator[Problem]:
    """Whether a crash left files and folders."""
    if found := [path for path in temporary(premises.database, premises.storage) if not is_held(path)]:
        yield warning(
            f"{counted(len(found), 'temporary file')} of a crash in {premises.storage.incoming}",
            "--fix removes them; a running service does so every hour",
            [path.name for path in found],
        )
    parents = (premises.settings.jobs_dir, premises.settings.cache_dir / "incoming")
    folders = [path for parent in parents if parent.is_dir() for path in parent.iterdir()]
    old = [str(path) for path in folders if _age(path) > YOUNG_SECONDS and not is_held(path)]
    if old:
        yield warning(
            f"{counted(len(old), 'folder')} of jobs or readings whose worker is gone",
            "nothing: the workers remove those that nobody holds, a minute after they start",
            old,
        )


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
