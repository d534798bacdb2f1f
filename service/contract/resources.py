"""Models and datasets: registered, inspected once by a worker, then used by jobs.

    inspecting --> ready | rejected

Inspection is leased like a job. What a job makes is a model like any other, ready from the start.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import delete, exists, or_, select, update
from sqlalchemy.orm import Session

from service.contract.database import clock
from service.contract.errors import AttemptsExhausted, Conflict, Fault
from service.contract.ids import new_id
from service.contract.leases import Claim, LeasedRecord, fenced_update, take
from service.contract.records import (
    DatasetRecord,
    File,
    JobInput,
    JobRecord,
    ModelRecord,
    ResourceState,
    Upload,
)
from service.contract.specs import DatasetDeclaration, ModelDeclaration
from service.contract.storage import StoredFile

KINDS: dict[str, type[ModelRecord] | type[DatasetRecord]] = {"mdl": ModelRecord, "dat": DatasetRecord}


def kind_of(resource_id: str) -> type[ModelRecord] | type[DatasetRecord]:
    """Return the table that an identifier belongs to."""
    return KINDS[resource_id[:3]]


def find(session: Session, resource_id: str, *, lock: bool = False) -> ModelRecord | DatasetRecord | None:
    """Return a model or dataset; `lock` keeps it as it is until the transaction ends."""
    mode = {"read": True} if lock else None
    if kind_of(resource_id) is ModelRecord:
        return session.get(ModelRecord, resource_id, with_for_update=mode)
    return session.get(DatasetRecord, resource_id, with_for_update=mode)


def files_of(session: Session, resource_id: str) -> dict[str, StoredFile]:
    """Return the files of a model or dataset by path."""
    rows = session.scalars(select(File).where(File.resource_id == resource_id).order_by(File.path))
    return {row.path: StoredFile(row.sha256, row.size) for row in rows}


def register(
    session: Session,
    owner: str,
    declaration: ModelDeclaration | DatasetDeclaration,
    files: dict[str, StoredFile],
) -> ModelRecord | DatasetRecord:
    """Insert a model or dataset that a worker is to inspect."""
    record = ModelRecord if isinstance(declaration, ModelDeclaration) else DatasetRecord
    row = record(
        id=new_id("mdl" if record is ModelRecord else "dat"),
        owner=owner,
        name=declaration.name,
        labels=declaration.labels,
        declaration=declaration.model_dump(mode="json"),
    )
    session.add(row)
    _add_files(session, row.id, files)
    session.flush()
    return row


def insert_result(
    session: Session,
    job: JobRecord,
    *,
    name: str,
    declaration: dict[str, Any],
    facts: dict[str, Any],
    files: dict[str, StoredFile],
) -> str:
    """Insert the model that a job made; the caller holds the job's claim."""
    row = ModelRecord(
        id=new_id("mdl"),
        owner=job.owner,
        name=name,
        labels=job.labels,
        state=ResourceState.READY,
        declaration=declaration,
        facts=facts,
        lineage_job_id=job.id,
    )
    session.add(row)
    _add_files(session, row.id, files)
    session.flush()
    return row.id


def _add_files(session: Session, resource_id: str, files: dict[str, StoredFile]) -> None:
    session.add_all(
        File(resource_id=resource_id, path=path, sha256=file.sha256, size=file.size) for path, file in files.items()
    )


def claim_inspection(session: Session, resource_id: str, worker: str, lease_seconds: float) -> Claim | None:
    """Become the inspector of a resource, if nobody else is; a lost inspector's place is freed by the sweep."""
    record = kind_of(resource_id)
    wanted = Claim(record, resource_id, 0, worker, lease_seconds)
    return take(session, wanted, record.state == ResourceState.INSPECTING, record.lease_until.is_(None))


def accept(session: Session, claim: Claim, facts: dict[str, Any]) -> None:
    """Record what the inspection found. Raises LeaseLost."""
    fenced_update(session, claim, state=ResourceState.READY, facts=facts, lease_until=None)


def reject(session: Session, claim: Claim, fault: Fault) -> None:
    """Record why the files cannot be used. Raises LeaseLost."""
    fenced_update(session, claim, state=ResourceState.REJECTED, error=fault.model_dump(mode="json"), lease_until=None)


def hand_back_inspection(session: Session, claim: Claim) -> None:
    """Let another worker inspect. Raises LeaseLost."""
    fenced_update(session, claim, lease_until=None, worker=None)


def sweep_inspections(session: Session, max_attempts: int) -> list[str]:
    """Free the inspections whose worker is lost, reject those that lost too many; return what waits, oldest first."""
    for record in KINDS.values():
        expired = (record.state == ResourceState.INSPECTING) & (record.lease_until < clock())
        fault = AttemptsExhausted(
            f"the worker that read the files died {max_attempts} times; "
            "they may need more memory than the reader may take (STILLHOUSE_READER_MEMORY_BYTES)"
        ).fault()
        _update(session, record, expired & (record.losses + 1 >= max_attempts),
                state=ResourceState.REJECTED, error=fault.model_dump(mode="json"), lease_until=None,
                epoch=record.epoch + 1)  # fmt: skip
        _update(session, record, expired, lease_until=None, worker=None, epoch=record.epoch + 1,
                losses=record.losses + 1, attempt=record.attempt + 1)  # fmt: skip
    return waiting_inspections(session)


def waiting_inspections(session: Session, limit: int | None = None) -> list[str]:
    """Return what no worker inspects yet, oldest first."""
    waiting: list[str] = []
    for record in KINDS.values():
        pending = select(record.id).where(record.state == ResourceState.INSPECTING, record.lease_until.is_(None))
        waiting += session.scalars(pending.order_by(record.id).limit(limit))
    return sorted(waiting, key=lambda resource_id: resource_id[4:])


def _update(session: Session, record: LeasedRecord, condition: Any, **values: Any) -> None:
    session.execute(update(record).where(condition).values(**values).execution_options(synchronize_session=False))


def remove(session: Session, resource_id: str, unfinished: Iterable[str]) -> list[str]:
    """Delete a resource that no unfinished job reads; return the digests that nothing refers to any more."""
    record = kind_of(resource_id)
    session.get(record, resource_id, with_for_update=True)  # a job that is being submitted is seen, or finds it gone
    users = select(JobRecord.id).join(JobInput).where(
        JobInput.resource_id == resource_id, JobRecord.state.in_(list(unfinished))
    )  # fmt: skip
    if (user := session.scalar(users.limit(1))) is not None:
        raise Conflict(f"the unfinished job {user} uses {resource_id}; cancel it first, or wait until it is done")
    digests = [file.sha256 for file in files_of(session, resource_id).values()]
    session.execute(delete(File).where(File.resource_id == resource_id))
    session.execute(delete(record).where(record.id == resource_id))
    return unreferenced(session, digests)


def unreferenced(session: Session, digests: Sequence[str]) -> list[str]:
    """Return those digests that no file, no upload and no job's checkpoint refers to."""
    return [digest for digest in sorted(set(digests)) if not session.scalar(select(_is_referenced(digest)))]


def _is_referenced(digest: str) -> Any:
    last = JobRecord.checkpoint["sha256"].as_string()
    second_last = JobRecord.checkpoint["previous"]["sha256"].as_string()  # what is resumed from if the last is damaged
    return (
        exists().where(File.sha256 == digest)
        | exists().where(Upload.sha256 == digest)
        | exists().where(or_(last == digest, second_last == digest))
    )
