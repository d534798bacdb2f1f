"""What a job leaves to read: its report when it succeeded, and its log as plain text."""

import json
from collections.abc import Generator
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import RootModel

from service.api.conditional import conditional_response
from service.api.deps import Reader, Services, ServicesDep, owned
from service.api.documents import ETAG, answers, problems, text_answer
from service.api.events import events_after
from service.api.outflow import Outflow
from service.api.times import rfc3339
from service.contract.errors import Conflict
from service.contract.jobs import DONE
from service.contract.records import Event, JobRecord
from service.contract.reports import Report

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
BATCH = 1000
LINE = "2026-01-05T09:30:00.000Z log      epoch 1 of 30: validation/accuracy 0.91\n"


class StoredReport(RootModel[dict[str, Any]]):
    """A report as it was written."""


def _no_report(job: JobRecord) -> Conflict:
    if job.state in DONE:
        return Conflict(f"the job is {job.state} and has no report; only a job that succeeded has one")
    return Conflict(f"the job is {job.state}; its report is there once it has succeeded")


@router.get(
    "/{job_id}/report",
    response_model=Report,
    responses=answers(
        {200: {"headers": ETAG}, 304: {"description": "The client has it already.", "headers": ETAG}}, 404, 409
    ),
)
def job_report(request: Request, services: ServicesDep, caller: Reader, job_id: str) -> Response:
    """Show the final comparison of teacher and student."""
    with services.database.read() as session:
        job = owned(session, JobRecord, job_id, caller)
    if job.report is None:
        raise _no_report(job)
    return conditional_response(request, StoredReport(job.report))


def _line(event: Event) -> str:
    """Return one line; what a worker wrote cannot fake another."""
    text = event.data.get("text")
    if not isinstance(text, str):
        text = json.dumps(event.data, ensure_ascii=False)
    safe = (
        text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n") if "\n" in text or "\r" in text else text
    )
    return f"{rfc3339(event.at)} {event.kind:<8} {safe}\n"


def _lines(services: Services, job_id: str) -> Generator[str, None, None]:
    cursor = 0
    while True:
        with services.database.read() as session:
            events = events_after(session, job_id, cursor, BATCH)
        yield "".join(map(_line, events))
        if len(events) < BATCH:
            return
        cursor = events[-1].id


@router.get(
    "/{job_id}/logs",
    response_class=Response,
    responses=text_answer("One line for each event so far.", LINE) | problems(404),
)
def job_logs(services: ServicesDep, caller: Reader, job_id: str) -> Response:
    """Show what a job said and what happened to it, as plain text."""
    with services.database.read() as session:
        owned(session, JobRecord, job_id, caller)
    return Outflow(_lines(services, job_id), 200, {}, "text/plain; charset=utf-8")
