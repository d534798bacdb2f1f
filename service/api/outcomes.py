"""What a job leaves to read: its report when it succeeded, as JSON or as a page, and its log as plain text.

A worker made the page, and names that users gave are in it. It is served so that a browser runs nothing and loads
nothing for it, whatever it holds: no script, no request, an origin of its own.
"""

import json
from collections.abc import Generator
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import RootModel

from service.api.conditional import conditional_response, unchanged
from service.api.deps import Reader, Services, ServicesDep, owned
from service.api.documents import ETAG, answers, header, problems, text_answer
from service.api.events import events_after
from service.api.negotiation import VARY, preferred
from service.api.outflow import Outflow
from service.api.times import rfc3339
from service.contract.analysis import AnalysisReport
from service.contract.errors import Conflict, Internal, NotFound
from service.contract.jobs import DONE
from service.contract.records import Event, JobRecord
from service.contract.reports import PAGE_FILE, Report
from service.contract.resources import files_of
from service.contract.storage import StoredFile

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
BATCH = 1000
JSON, HTML = "application/json", "text/html"
VARIES = {"Vary": header("Always Accept.", "Accept")}
# Styles may stand in the page; its own, stricter policy names the one that does.
HARMLESS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
LINE = "2026-01-05T09:30:00.000Z log      epoch 1 of 30: validation/accuracy 0.91\n"


class StoredReport(RootModel[dict[str, Any]]):
    """A report as it was written."""


def _no_report(job: JobRecord) -> Conflict:
    if job.state in DONE:
        return Conflict(f"the job is {job.state} and has no report; only a job that succeeded has one")
    return Conflict(f"the job is {job.state}; its report is there once it has succeeded")


@router.get(
    "/{job_id}/report",
    response_model=Report | AnalysisReport,
    responses=answers(
        {
            200: {
                "description": "The report: JSON, or the page for who accepts `text/html` more.",
                "headers": ETAG | VARIES,
                "content": {HTML: {"schema": {"type": "string"}, "example": '<!DOCTYPE html>\n<html lang="en">…'}},
            },
            304: {"description": "The client has it already.", "headers": ETAG | VARIES},
        },
        404,
        409,
    ),
)
def job_report(request: Request, services: ServicesDep, caller: Reader, job_id: str) -> Response:
    """Show the final comparison of teacher and student, or what an analysis measured.

    With `Accept: text/html` it is one page with figures that needs nothing else: no network, no scripts. Each
    representation has its own ETag. An analysis makes no files: it answers with JSON alone.
    """
    with services.database.read() as session:
        job = owned(session, JobRecord, job_id, caller)
        if job.report is None:
            raise _no_report(job)
        if job.result_model_id is None or preferred(request, (JSON, HTML)) == JSON:
            return conditional_response(request, StoredReport(job.report), VARY)
        page = files_of(session, job.result_model_id).get(PAGE_FILE)
    if page is None:
        raise NotFound(
            f"the page of {job_id} is not there any more: it was a file of its result {job.result_model_id}, which was "
            "deleted; ask for application/json"
        )
    return page_response(request, services, page)


def page_response(request: Request, services: Services, page: StoredFile) -> Response:
    """Answer with a stored page, or with the word that the client has it."""
    fields = {"ETag": f'"{page.sha256}"', "Cache-Control": "private, no-cache", **VARY, **HARMLESS}
    if unchanged(request, fields["ETag"]):
        return Response(status_code=304, headers=fields)
    try:
        content = services.storage.read(page.sha256)
    except NotFound as error:
        raise Internal("the bytes of the page are missing from the storage") from error
    return Outflow(content, 200, {**fields, "Content-Length": str(page.size)}, f"{HTML}; charset=utf-8")


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
