"""Showing a job now, or when it changes (RFC 7240, `Prefer: wait`).

The wait looks at one number, the row's time of change; the whole job is read only when that moved,
and once more at the end for what lies outside the row (its place in the queue).
"""

import re
import time
from typing import Annotated

import anyio
from anyio.to_thread import run_sync
from fastapi import Header, Request, Response
from sqlalchemy import bindparam, select

from service.api.conditional import conditional_response, tag_of, unchanged
from service.api.deps import Services, owned
from service.api.job_views import JobView, show
from service.contract.records import JobRecord
from service.keys import Caller

WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*(\d{1,9})\s*(?:[,;]|$)", re.IGNORECASE)
Prefer = Annotated[
    str | None,
    Header(alias="Prefer", description="`wait=N` waits up to N seconds for a change.", examples=["wait=30"]),
]


UPDATED_AT = select(JobRecord.updated_at).where(JobRecord.id == bindparam("id"))


def wanted_seconds(prefer: str | None) -> int | None:
    """Return for how long the client would wait, if it would."""
    found = WAIT.search(prefer or "")
    return int(found[1]) if found else None


def _load(services: Services, caller: Caller, job_id: str) -> tuple[JobView, float]:
    with services.database.read() as session:
        row = owned(session, JobRecord, job_id, caller)
        (view,) = show(session, [row], services.settings.lease_seconds)
        return view, row.updated_at


def _updated_at(services: Services, job_id: str) -> float | None:
    with services.database.read() as session:
        return session.scalar(UPDATED_AT, {"id": job_id})


def _tag(view: JobView) -> str:
    return tag_of(view.model_dump_json().encode())


async def wait_for_change(
    request: Request, services: Services, caller: Caller, job_id: str, prefer: str | None
) -> Response:
    """Answer with the job: at once, or when it is another than the client knows, or after the wait."""
    view, updated_at = await run_sync(_load, services, caller, job_id)
    headers: dict[str, str] = {}
    seconds = wanted_seconds(prefer)
    if seconds is not None:
        headers["Preference-Applied"] = f"wait={min(seconds, int(services.settings.max_wait_seconds))}"
        known = request.headers.get("if-none-match") is None or unchanged(request, _tag(view))
        if known and not view.done:
            deadline = time.monotonic() + min(seconds, services.settings.max_wait_seconds)
            view = await _changed(request, services, caller, view, updated_at, deadline)
    if not view.done:
        headers["Retry-After"] = "1"
    return conditional_response(request, view, headers)


async def _changed(
    request: Request, services: Services, caller: Caller, view: JobView, updated_at: float, deadline: float
) -> JobView:
    while (left := deadline - time.monotonic()) > 0 and not await request.is_disconnected():
        await anyio.sleep(min(services.settings.poll_seconds, left))
        if await run_sync(_updated_at, services, view.id) == updated_at:
            continue
        latest, updated_at = await run_sync(_load, services, caller, view.id)
        if latest != view:
            return latest
    latest, _ = await run_sync(_load, services, caller, view.id)
    return latest
