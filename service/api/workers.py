"""The workers, as they last spoke."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy import select

from service.api.deps import Reader, ServicesDep
from service.api.times import Timestamp, rfc3339
from service.contract.database import clock
from service.contract.records import JobRecord, WorkerRecord

router = APIRouter(prefix="/v1/workers", tags=["operation"])


class WorkerView(BaseModel):
    """A worker process."""

    id: str
    queue: str = Field(description="jobs or inspections.")
    alive: bool = Field(description="Whether it spoke within the time of a lease.")
    busy: bool
    job_id: str | None = Field(description="What it works on, when that is the caller's.")
    started_at: Timestamp
    heartbeat_at: Timestamp
    facts: dict[str, Any] = Field(description="Device, threads, versions.")


class WorkerPage(BaseModel):
    """All workers that were ever seen; there is one page."""

    items: list[WorkerView]
    next_page_token: None = None


@router.get("")
def list_workers(services: ServicesDep, caller: Reader) -> WorkerPage:
    """List the workers, the last to speak first."""
    with services.database.read() as session:
        rows = session.execute(
            select(WorkerRecord, clock() - WorkerRecord.heartbeat_at).order_by(WorkerRecord.heartbeat_at.desc())
        ).all()
        working_on = [worker.job_id for worker, _ in rows if worker.job_id is not None]
        theirs = select(JobRecord.id).where(JobRecord.id.in_(working_on), JobRecord.owner == caller.owner)
        visible = set(session.scalars(theirs))
    return WorkerPage(
        items=[
            WorkerView(
                id=worker.id,
                queue=worker.queue,
                alive=silence <= services.settings.lease_seconds,
                busy=worker.job_id is not None,
                job_id=worker.job_id if worker.job_id in visible else None,
                started_at=rfc3339(worker.started_at),
                heartbeat_at=rfc3339(worker.heartbeat_at),
                facts=worker.facts,
            )
            for worker, silence in rows
        ]
    )
