"""Jobs as they are shown: pure functions of rows, so that nothing changes but what changed.

Three things are not in the job's own row: its place in the queue, whether any worker has been seen,
and what time it is. `Surroundings` holds them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field
from sqlalchemy import Connection, Row, bindparam, func, select, tuple_
from sqlalchemy.orm import Session, aliased

from service.api.errors import Problem, stored_problem
from service.api.times import Timestamp, rfc3339, rfc3339_or_none
from service.contract.database import clock
from service.contract.jobs import DONE
from service.contract.records import JobRecord, JobState, WorkerRecord

JobRow = JobRecord | Row[*tuple[Any, ...]]  # a job as an object, or as a plain row of its table


class Stage(BaseModel):
    """Where in its pipeline a job is."""

    name: str
    index: int
    total: int


class Progress(BaseModel):
    """How far a job is."""

    fraction: float | None = Field(0.0, description="From 0 to 1.")
    step: int | None = None
    total_steps: int | None = None
    eta_seconds: float | None = None
    updated_at: Timestamp | None = None


class Durations(BaseModel):
    """In seconds; null until the time in question has ended."""

    queued: float | None
    running: float | None


class Result(BaseModel):
    """What a job made."""

    model_id: str | None = Field(description="Null where the job makes a report alone: an analysis.")
    report: str = Field(description="Where the report is.")


class JobView(BaseModel):
    """A job."""

    id: str
    type: str
    done: bool
    state: JobState
    reason: str | None = Field(description="Why it stands where it stands.")
    stage: Stage | None
    progress: Progress
    attempt: int
    queue_position: int | None = Field(description="1 is next; null unless queued.")
    heartbeat_at: Timestamp | None
    durations: Durations
    result: Result | None
    error: Problem | None
    links: dict[str, str]
    spec: dict[str, Any] = Field(description="The job with every default filled in.")
    warnings: list[str]
    labels: dict[str, str]
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None


class JobPage(BaseModel):
    """Jobs, newest first."""

    items: list[JobView]
    next_page_token: str | None


@dataclass(frozen=True)
class Surroundings:
    """What is around jobs: their places in the queue, and for how long no worker was seen."""

    positions: Mapping[str, int]
    silences: Mapping[str, float | None]  # of each queue, in seconds; None when there never was a worker
    lease_seconds: float


_other = aliased(JobRecord)
_ahead = (
    select(func.count())
    .where(_other.state == JobState.QUEUED)
    .where(tuple_(_other.queued_at, _other.id) <= tuple_(JobRecord.queued_at, JobRecord.id))
    .scalar_subquery()
)
# Statements are built once: building one takes longer than running it.
POSITIONS = select(JobRecord.id, _ahead).where(JobRecord.id.in_(bindparam("ids", expanding=True)))
SILENCES = select(WorkerRecord.queue, clock() - func.max(WorkerRecord.heartbeat_at)).group_by(WorkerRecord.queue)


def surroundings(session: Session | Connection, rows: Sequence[JobRow], lease_seconds: float) -> Surroundings:
    """Look around these jobs; only queued ones cost a query."""
    queued = [row.id for row in rows if row.state == JobState.QUEUED]
    if not queued:
        return Surroundings({}, {}, lease_seconds)
    positions = session.execute(POSITIONS, {"ids": queued}).all()
    return Surroundings(dict(positions), dict(session.execute(SILENCES).all()), lease_seconds)


def _no_worker(around: Surroundings, queue: str) -> str | None:
    silence = around.silences.get(queue)
    if silence is None:
        return "no worker has been seen yet"
    if silence <= around.lease_seconds:
        return None
    return f"no worker has been seen for {int(silence // 10) * 10} s"  # coarse, so that the ETag holds a while


def _reason(row: JobRow, around: Surroundings) -> str | None:
    if row.state != JobState.QUEUED:
        return row.reason
    absent = _no_worker(around, "jobs" if row.waiting_for is None else "inspections")
    return "; ".join(part for part in (row.reason, absent) if part) or None


def _durations(row: JobRow) -> Durations:
    queued_until = row.started_at if row.started_at is not None else row.finished_at
    queued = None if queued_until is None else round(queued_until - row.queued_at, 3)
    if row.started_at is None or row.finished_at is None:
        return Durations(queued=queued, running=None)
    return Durations(queued=queued, running=round(row.finished_at - row.started_at, 3))


def _progress(row: JobRow) -> Progress:
    stored = dict(row.progress or {})
    return Progress(**{**stored, "updated_at": rfc3339_or_none(stored.get("updated_at"))})


def _links(row: JobRow) -> dict[str, str]:
    base = f"/v1/jobs/{row.id}"
    links = {"self": base} | {name: f"{base}/{name}" for name in ("events", "metrics", "logs", "report")}
    if row.state not in DONE:
        links["cancel"] = f"{base}/cancel"
    if row.state in {JobState.QUEUED, JobState.PREPARING, JobState.RUNNING}:
        links["pause"] = f"{base}/pause"
    if row.state == JobState.PAUSED:
        links["resume"] = f"{base}/resume"
    if row.state in {JobState.FAILED, JobState.CANCELLED}:
        links["retry"] = f"{base}/retry"
    if row.result_model_id is not None:
        links["result"] = f"/v1/models/{row.result_model_id}"
    return links


def job_view(row: JobRow, around: Surroundings) -> JobView:
    """Return a job as it is shown."""
    made = Result(model_id=row.result_model_id, report=f"/v1/jobs/{row.id}/report")
    return JobView(
        id=row.id,
        type=row.type,
        done=row.state in DONE,
        state=JobState(row.state),
        reason=_reason(row, around),
        stage=None if row.stage is None else Stage(**row.stage),
        progress=_progress(row),
        attempt=row.attempt,
        queue_position=around.positions.get(row.id),
        heartbeat_at=rfc3339_or_none(row.heartbeat_at),
        durations=_durations(row),
        result=made if row.state == JobState.SUCCEEDED else None,
        error=stored_problem(row.error),
        links=_links(row),
        spec=row.spec,
        warnings=row.warnings,
        labels=row.labels,
        created_at=rfc3339(row.created_at),
        started_at=rfc3339_or_none(row.started_at),
        finished_at=rfc3339_or_none(row.finished_at),
    )


def show(session: Session | Connection, rows: Sequence[JobRow], lease_seconds: float) -> list[JobView]:
    """Return jobs as they are shown."""
    around = surroundings(session, rows, lease_seconds)
    return [job_view(row, around) for row in rows]
