"""What is under way: jobs, inspections, uploads and workers."""

from collections.abc import Iterator
from importlib.metadata import version

from sqlalchemy import ColumnElement, or_, select

from service.contract.database import clock
from service.contract.jobs import HELD, UNFINISHED
from service.contract.leases import LeasedRecord
from service.contract.records import (
    DatasetRecord,
    JobInput,
    JobRecord,
    ModelRecord,
    ResourceState,
    Upload,
    WorkerRecord,
)
from service.doctor.findings import Premises, Problem, counted, error, in_time, warning
from service.doctor.locks import is_held

SILENT_SECONDS = 60.0


def leases(premises: Premises) -> Iterator[Problem]:
    """Whether a sweep has missed what lost its worker."""
    late = 3 * (premises.settings.lease_seconds + premises.settings.sweep_seconds)
    states: dict[LeasedRecord, ColumnElement[bool]] = {
        JobRecord: JobRecord.state.in_(list(HELD)),
        ModelRecord: ModelRecord.state == ResourceState.INSPECTING,
        DatasetRecord: DatasetRecord.state == ResourceState.INSPECTING,
    }
    found: list[str] = []
    with premises.database.read() as session:
        for record, held in states.items():
            ages = select(record.id, clock() - record.lease_until).where(held, record.lease_until < clock() - late)
            found += [f"{key} (for {in_time(age)})" for key, age in session.execute(ages)]
        lost = list(session.scalars(select(JobRecord.id).where(states[JobRecord], JobRecord.lease_until.is_(None))))
    if found and premises.is_served:
        yield error(
            f"{counted(len(found), 'piece')} of work whose worker is lost, and nobody gives it to another",
            "no worker sweeps: see whether any runs (GET /v1/workers) and what its log says",
            found,
        )
    elif found:
        yield warning(
            f"{counted(len(found), 'piece')} of work whose worker is lost",
            "start the service: its workers queue it again",
            found,
        )
    if lost:
        yield error("jobs that a worker should hold have no lease", "report this as a fault, with these ids", lost)


def inputs(premises: Premises) -> Iterator[Problem]:
    """Whether the models and datasets that unfinished jobs read are there."""
    gone = (
        select(JobInput.job_id, JobInput.resource_id)
        .join(JobRecord)
        .where(
            JobRecord.state.in_(list(UNFINISHED)),
            JobInput.resource_id.not_in(select(ModelRecord.id)),
            JobInput.resource_id.not_in(select(DatasetRecord.id)),
        )
    )
    with premises.database.read() as session:
        found = [f"{job_id} reads {resource_id}" for job_id, resource_id in session.execute(gone)]
    if found:
        yield error(f"{counted(len(found), 'input')} of unfinished jobs is gone", "cancel these jobs", found)


def uploads(premises: Premises) -> Iterator[Problem]:
    """Whether the bytes of unfinished uploads are there."""
    short: list[str] = []
    long: list[str] = []
    with premises.database.read() as session:
        rows = session.execute(select(Upload.id, Upload.offset).where(Upload.sha256.is_(None))).all()
    for upload_id, offset in rows:
        path = premises.storage.incoming / f"{upload_id}.part"
        size = path.stat().st_size if path.exists() else 0
        if size != offset and _is_still(premises, upload_id, offset) and not is_held(path):
            (short if size < offset else long).append(f"{upload_id}: {size} bytes, {offset} recorded")
    if short:
        yield warning(
            f"{counted(len(short), 'upload')} lost bytes on the disk",
            "nothing: the client is told to go on where the bytes end",
            short,
        )
    if long:
        yield warning(
            f"{counted(len(long), 'upload')} with bytes that were never recorded: a request was cut off by a crash",
            "nothing: they are cut off when the upload goes on",
            long,
        )


def _is_still(premises: Premises, upload_id: str, offset: int) -> bool:
    same = select(Upload.id).where(Upload.id == upload_id, Upload.sha256.is_(None), Upload.offset == offset)
    with premises.database.read() as session:
        return session.scalar(same) is not None


def workers(premises: Premises) -> Iterator[Problem]:
    """Whether the workers live, and are of this version."""
    mine, silent, others, alive = version("stillhouse"), [], [], 0
    with premises.database.read() as session:
        for row, age in session.execute(select(WorkerRecord, clock() - WorkerRecord.heartbeat_at)):
            if age > SILENT_SECONDS:
                silent.append(f"{row.id} (for {in_time(age)})")
                continue
            alive += 1
            if row.facts.get("version") != mine:
                others.append(f"{row.id}: {row.facts.get('version')} on {row.facts.get('host')}")
        ready = or_(JobRecord.state.in_(list(HELD)), JobRecord.state == "queued")
        is_wanted = session.scalar(select(JobRecord.id).where(ready).limit(1)) is not None
    if others:
        yield warning(
            f"{counted(len(others), 'worker')} of another version than this ({mine})",
            "run one version: a job that resumes on another may differ in its last bits",
            others,
        )
    if silent:
        yield warning(
            f"{counted(len(silent), 'worker')} went without a word", "nothing: after an hour they are forgotten", silent
        )
    if premises.is_served and is_wanted and not alive:
        yield error("jobs wait and no worker lives", "see logs/worker-jobs-1.log: the service starts them again")
