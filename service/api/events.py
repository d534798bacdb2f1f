"""What happened to a job: JSON pages, or server-sent events that replay without loss.

An event's id is the database's own sequence, so `Last-Event-ID` says exactly what a client has.
"""

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.api.deps import Reader, Services, ServicesDep, owned
from service.api.documents import LINK, answers
from service.api.paging import Limit, PageToken, decode_token, encode_token, page_response, wrong_query
from service.api.times import Timestamp, rfc3339
from service.api.watch import Version, version_of
from service.contract.errors import StillhouseError
from service.contract.jobs import DONE
from service.contract.records import Event, JobRecord
from service.keys import Caller, check_valid

HEARTBEAT_SECONDS = 15.0  # proxies end connections that stay silent
LOOK_SECONDS = 5.0  # how often a stream looks by itself: for its key, and for what the watch may have missed
BATCH = 500
MAX_ID = 2**63 - 1
STREAM = "text/event-stream"

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


class EventView(BaseModel):
    """Something that happened to a job."""

    id: int
    at: Timestamp
    kind: str = Field(description="state, stage, warning, log, checkpoint, …")
    data: dict[str, Any]


class EventPage(BaseModel):
    """Events, oldest first."""

    items: list[EventView]
    next_page_token: str | None


def event_view(event: Event) -> EventView:
    """Return an event as it is shown."""
    return EventView(id=event.id, at=rfc3339(event.at), kind=event.kind, data=event.data)


def events_after(session: Session, job_id: str, after: int, limit: int) -> Sequence[Event]:
    """Return a job's events past an id, oldest first."""
    statement = select(Event).where(Event.job_id == job_id, Event.id > after).order_by(Event.id).limit(limit)
    return session.scalars(statement).all()


After = Annotated[int, Query(ge=0, le=MAX_ID, description="Only events past this id.")]
LastEventId = Annotated[
    str | None,
    Header(alias="Last-Event-ID", max_length=64, description="The last event that the client has.", examples=["17"]),
]
EXAMPLE = (
    'id: 17\nevent: state\ndata: {"id":17,"at":"2026-01-05T09:30:00.000Z","kind":"state","data":{"state":"running"}}\n'
)


def _cursor(after: int, page_token: str | None, last_event_id: str | None) -> int:
    """Return the id past which to go on; a token or a Last-Event-ID, being the later word, wins."""
    if page_token is not None:
        position = decode_token(page_token)
        if not isinstance(position, int) or not 0 <= position <= MAX_ID:
            raise wrong_query("page_token", "a token of another list")
        return position
    if last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit():
        return max(after, min(int(last_event_id), MAX_ID))
    return after


@router.get(
    "/{job_id}/events",
    response_model=EventPage,
    responses=answers(
        {
            200: {
                "description": "A page, or with `Accept: text/event-stream` a stream that ends with the job.",
                "headers": LINK,
                "content": {STREAM: {"schema": {"type": "string"}, "example": EXAMPLE}},
            }
        },
        404,
    ),
)
async def job_events(
    request: Request,
    services: ServicesDep,
    caller: Reader,
    job_id: str,
    limit: Limit = 100,
    after: After = 0,
    page_token: PageToken = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Show what happened to a job."""
    cursor = _cursor(after, page_token, last_event_id)
    if STREAM in request.headers.get("accept", ""):
        await run_sync(_batch, services, caller, job_id, cursor)  # 404 before the stream begins
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(
            _stream_while_possible(services, caller, job_id, cursor), headers=headers, media_type=STREAM
        )
    return await run_sync(_page, request, services, caller, job_id, cursor, limit)


def _page(request: Request, services: Services, caller: Caller, job_id: str, cursor: int, limit: int) -> Response:
    with services.database.read() as session:
        owned(session, JobRecord, job_id, caller)
        events = events_after(session, job_id, cursor, limit + 1)
    token = encode_token(events[limit - 1].id) if len(events) > limit else None
    return page_response(request, EventPage(items=list(map(event_view, events[:limit])), next_page_token=token), token)


def _batch(services: Services, caller: Caller, job_id: str, cursor: int) -> tuple[Sequence[Event], Version, bool]:
    """Return the next events, the job's version, and whether nothing follows. Raises Unauthenticated and NotFound."""
    with services.database.read() as session:
        check_valid(session, caller)
        job = owned(session, JobRecord, job_id, caller)
        events = events_after(session, job_id, cursor, BATCH)
        return events, version_of(job), job.state in DONE and len(events) < BATCH


def _frame(event: Event) -> str:
    data = json.dumps(event_view(event).model_dump(), separators=(",", ":"), ensure_ascii=False)
    return f"id: {event.id}\nevent: {event.kind}\ndata: {data}\n\n"


async def _stream_while_possible(services: Services, caller: Caller, job_id: str, cursor: int) -> AsyncIterator[str]:
    """End a stream when its job, its key or the database has gone: a client that asks again learns which."""
    with suppress(StillhouseError):
        async for frames in _stream(services, caller, job_id, cursor):
            yield frames


async def _stream(services: Services, caller: Caller, job_id: str, cursor: int) -> AsyncIterator[str]:
    """Yield frames until the job is done and everything was sent; a comment when nothing happens for long."""
    yield ": stream of job events\n\n"
    spoken = time.monotonic()
    while True:
        events, version, is_last = await run_sync(_batch, services, caller, job_id, cursor)
        if events:
            cursor = events[-1].id
            yield "".join(map(_frame, events))
            spoken = time.monotonic()
        if is_last or services.watch.is_closed:
            return
        if time.monotonic() - spoken >= HEARTBEAT_SECONDS:
            yield ": heartbeat\n\n"
            spoken = time.monotonic()
        if len(events) < BATCH:
            await services.watch.change(job_id, version, min(LOOK_SECONDS, HEARTBEAT_SECONDS))
