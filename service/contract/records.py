"""The tables. Times are seconds since 1970 by the database's clock.

What a worker must hold to change a row is the same everywhere (`Leased`): the epoch, which each
claim raises (the fencing token), and a lease that has not run out.
"""

from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from service.contract.database import clock


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"  #: waits for a worker, or for its inputs to be inspected
    PREPARING = "preparing"  #: claimed; its inputs are being read
    RUNNING = "running"  #: a worker computes
    PAUSING = "pausing"  #: asked to pause; the worker has not answered yet
    PAUSED = "paused"  #: holds its checkpoint and no worker
    CANCELLING = "cancelling"  #: asked to stop; the worker has not answered yet
    SUCCEEDED = "succeeded"  #: its result is published
    FAILED = "failed"  #: ended with an error
    CANCELLED = "cancelled"  #: ended by its owner


class ResourceState(StrEnum):
    """Where a model or dataset stands."""

    INSPECTING = "inspecting"  #: a worker has yet to read it
    READY = "ready"  #: can be used
    REJECTED = "rejected"  #: cannot be used; its error says why


class Record(DeclarativeBase):
    """The root of all tables."""

    type_annotation_map: ClassVar = {dict[str, Any]: JSON, list[Any]: JSON, int: BigInteger}


class Owned:
    """A row with an identifier, an owner and a time of making."""

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(String(200), index=True)
    created_at: Mapped[float] = mapped_column(default=clock())


class Leased:
    """A row that one worker at a time may change."""

    epoch: Mapped[int] = mapped_column(default=0)
    attempt: Mapped[int] = mapped_column(default=1)
    losses: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_until: Mapped[float | None]
    heartbeat_at: Mapped[float | None]


class ApiKey(Owned, Record):
    __tablename__ = "api_keys"
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[Any]]
    revoked_at: Mapped[float | None]


class Upload(Owned, Record):
    __tablename__ = "uploads"
    offset: Mapped[int] = mapped_column(default=0)
    length: Mapped[int | None]
    expected_sha256: Mapped[str | None] = mapped_column(String(64))
    sha256: Mapped[str | None] = mapped_column(String(64))
    updated_at: Mapped[float] = mapped_column(default=clock())


class File(Record):
    """A file of a model or dataset; the bytes lie in the storage under their SHA-256."""

    __tablename__ = "files"
    resource_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    path: Mapped[str] = mapped_column(String(200), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    size: Mapped[int]


class Resource(Owned, Leased):
    """What models and datasets share."""

    name: Mapped[str] = mapped_column(String(200))
    labels: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16), index=True, default=ResourceState.INSPECTING)
    declaration: Mapped[dict[str, Any]]
    facts: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]


class ModelRecord(Resource, Record):
    __tablename__ = "models"
    lineage_job_id: Mapped[str | None] = mapped_column(String(40), index=True)


class DatasetRecord(Resource, Record):
    __tablename__ = "datasets"


class JobRecord(Owned, Leased, Record):
    __tablename__ = "jobs"
    type: Mapped[str] = mapped_column(String(32))
    spec: Mapped[dict[str, Any]]
    labels: Mapped[dict[str, Any]]
    warnings: Mapped[list[Any]] = mapped_column(default=list)
    waiting_for: Mapped[str | None] = mapped_column(String(40), index=True)
    state: Mapped[str] = mapped_column(String(16), index=True, default=JobState.QUEUED)
    reason: Mapped[str | None] = mapped_column(Text)
    stage: Mapped[dict[str, Any] | None]
    progress: Mapped[dict[str, Any] | None]
    queued_at: Mapped[float] = mapped_column(default=clock())
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    updated_at: Mapped[float] = mapped_column(default=clock(), onupdate=clock())
    deadline_at: Mapped[float | None]
    checkpoint: Mapped[dict[str, Any] | None]
    result_model_id: Mapped[str | None] = mapped_column(String(40))
    report: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]

    __table_args__ = (Index("jobs_by_state_and_queue", "state", "queued_at"),)


class JobInput(Record):
    """Which job reads which model or dataset: what an unfinished job uses is not deleted."""

    __tablename__ = "job_inputs"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    resource_id: Mapped[str] = mapped_column(String(40), primary_key=True, index=True)


class Event(Record):
    """Something that happened to a job; `id` is the database's own sequence."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    at: Mapped[float] = mapped_column(default=clock())
    kind: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]]

    __table_args__ = ({"sqlite_autoincrement": True},)  # an id is never given twice, even after deletions


class Metric(Record):
    """One point of a series."""

    __tablename__ = "metrics"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float | None]


class IdempotencyRecord(Record):
    __tablename__ = "idempotency_keys"
    owner: Mapped[str] = mapped_column(String(200), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(default=clock())
    resource_id: Mapped[str | None] = mapped_column(String(40))
    response: Mapped[dict[str, Any] | None]


class WorkerRecord(Record):
    """A worker process, as it last spoke."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    queue: Mapped[str] = mapped_column(String(32))
    facts: Mapped[dict[str, Any]]
    job_id: Mapped[str | None] = mapped_column(String(40))
    started_at: Mapped[float] = mapped_column(default=clock())
    heartbeat_at: Mapped[float] = mapped_column(default=clock())
