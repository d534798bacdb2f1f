"""Showing a job now, or when it changes (RFC 7240, `Prefer: wait`).

The whole job is read only when the watch says that its row changed, and once more at the end for
what lies outside the row (its place in the queue).
"""

import re
import time
from collections.abc import Sequence
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import Header, Request, Response
from sqlalchemy import bindparam, select

from service.api.conditional import conditional_response, tag_of, unchanged
from service.api.deps import Services, is_id, no_such
from service.api.job_views import JobView, show
from service.api.watch import Version, version_of
from service.contract.records import JobRecord
from service.keys import Caller

CONNECTION_SECONDS = 2.0  # how often a waiting request looks whether its client is still there
WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*(\d{1,9})\s*(?:[,;]|$)", re.IGNORECASE)
JOB = select(JobRecord.__table__).where(JobRecord.id == bindparam("id"), JobRecord.owner == bindparam("owner"))
Prefer = Annotated[
    list[str] | None,  # its lines
    Header(alias="Prefer", description="`wait=N` waits up to N seconds for a change.", examples=[["wait=30"]]),
]


def wanted_seconds(prefer: str) -> int | None:
    """Return for how long the client would wait, if it would."""
    found = WAIT.search(prefer)
    return int(found[1]) if found else None


def _load(services: Services, caller: Caller, job_id: str) -> tuple[JobView, Version]:
    with services.database.glance() as connection:
        row = connection.execute(JOB, {"id": job_id, "owner": caller.owner}).one_or_none() if is_id(job_id) else None
        if row is None:
            raise no_such(JobRecord, job_id)
        (view,) = show(connection, [row], services.settings.lease_seconds)
        return view, version_of(row)


def _tag(view: JobView) -> str:
    return tag_of(view.model_dump_json().encode())


async def wait_for_change(
    request: Request, services: Services, caller: Caller, job_id: str, preferences: Sequence[str]
) -> Response:
    """Answer with the job: at once, or when it is another than the client knows, or after the wait."""
    view, version = await run_sync(_load, services, caller, job_id)
    headers: dict[str, str] = {}
    seconds = wanted_seconds(", ".join(preferences))
    if seconds is not None:
        headers["Preference-Applied"] = f"wait={min(seconds, int(services.settings.max_wait_seconds))}"
        known = request.headers.get("if-none-match") is None or unchanged(request, _tag(view))
        if known and not view.done:
            deadline = time.monotonic() + min(seconds, services.settings.max_wait_seconds)
            view = await _changed(request, services, caller, view, version, deadline)
    if not view.done:
        headers["Retry-After"] = "1"
    return conditional_response(request, view, headers)


async def _changed(
    request: Request, services: Services, caller: Caller, view: JobView, version: Version, deadline: float
) -> JobView:
    watch = services.watch
    while not watch.is_closed and (left := deadline - time.monotonic()) > 0 and not await request.is_disconnected():
        if await watch.change(view.id, version, min(left, CONNECTION_SECONDS)):
            latest, version = await run_sync(_load, services, caller, view.id)
            if latest != view:
                return latest
    latest, _ = await run_sync(_load, services, caller, view.id)
    return latest
