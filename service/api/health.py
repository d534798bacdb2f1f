"""Is the process alive, and can it do its work?

`/livez` touches nothing. `/readyz` asks the database, the broker, the storage and the disk, all at
once and each with a deadline, and names what is wrong. It also shows what the inspection workers
said of the jail in which they read files; a jail with gaps is told, and stops nobody.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from sqlalchemy import select

from service.api.deps import Services, ServicesDep
from service.api.documents import problems, text_answer
from service.api.errors import problem_of, render, request_id_of
from service.contract.database import clock
from service.contract.errors import StillhouseError, Unavailable
from service.contract.queue import depth
from service.contract.records import JobRecord, WorkerRecord

CHECK_SECONDS = 5.0

router = APIRouter(tags=["operation"])


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Check(BaseModel):
    """One part, and what is wrong with it."""

    name: str
    ok: bool
    detail: str


class Ready(BaseModel):
    """Every part answers."""

    status: Literal["ready"] = "ready"
    checks: list[Check]


def _database(services: Services) -> str:
    with services.database.read() as session:
        session.execute(select(clock(), select(JobRecord.id).limit(1).scalar_subquery())).one()
    return "answers"


def _broker(services: Services) -> str:
    return f"{depth(services.celery, 'jobs')} messages wait for workers"


def _storage(services: Services) -> str:
    services.storage.check()
    return "can be written"


def _disk(services: Services) -> str:
    free, least = services.storage.check(), services.settings.min_free_bytes
    if free < least:
        raise Unavailable(f"{free} bytes of disk are free and {least} are the least; remove files or add disk")
    return f"{free} bytes are free"


def _jail(services: Services) -> str:
    alive = clock() - WorkerRecord.heartbeat_at <= services.settings.lease_seconds
    with services.database.read() as session:
        facts = session.scalars(select(WorkerRecord.facts).where(WorkerRecord.queue == "inspections", alive)).all()
    told = Counter(_in_words(fact.get("jail") or {}) for fact in facts)
    return "; ".join(f"{count} inspecting: {words}" for words, count in told.items()) or "no inspection worker is alive"


def _in_words(jail: Mapping[str, str | bool]) -> str:
    """Say what is in force, and what the worker's attempts to break out showed to be open."""
    layers = [f"{name} {value}" for name, value in jail.items() if not isinstance(value, bool)]
    gaps = [name for name, value in jail.items() if value is False]
    return ", ".join([*layers, f"gaps: {' '.join(gaps)}" if gaps else "no gaps"]) if jail else "says nothing of a jail"


CHECKS: Mapping[str, Callable[[Services], str]] = {
    "database": _database,
    "broker": _broker,
    "storage": _storage,
    "disk": _disk,
    "jail": _jail,
}


async def _check(services: Services, name: str, limiter: anyio.CapacityLimiter) -> Check:
    try:
        with anyio.fail_after(CHECK_SECONDS):
            detail = await run_sync(CHECKS[name], services, abandon_on_cancel=True, limiter=limiter)
        return Check(name=name, ok=True, detail=detail)
    except TimeoutError:
        return Check(name=name, ok=False, detail=f"no answer within {CHECK_SECONDS:g} s")
    except StillhouseError as error:
        return Check(name=name, ok=False, detail=error.detail)
    except Exception as error:  # noqa: BLE001  whatever failed is what is to be told
        return Check(name=name, ok=False, detail=f"{type(error).__name__}: {str(error)[:500]}")


async def run_checks(services: Services) -> list[Check]:
    """Ask every part at once; slow ones take none of the threads that answer requests."""
    limiter = anyio.CapacityLimiter(len(CHECKS))
    found: dict[str, Check] = {}

    async def ask(name: str) -> None:
        found[name] = await _check(services, name, limiter)

    async with anyio.create_task_group() as group:
        for name in CHECKS:
            group.start_soon(ask, name)
    return [found[name] for name in CHECKS]


@router.get("/livez")
async def livez() -> Alive:
    """Answer that the process lives; touches nothing."""
    return Alive()


@router.get("/readyz", response_model=Ready, responses=problems(503))
async def readyz(request: Request, services: ServicesDep) -> Response:
    """Answer whether everything that the service stands on works; a 503 says what does not, in `checks`."""
    checks = await run_checks(services)
    failed = [check for check in checks if not check.ok]
    if not failed:
        return Response(Ready(checks=checks).model_dump_json(), media_type="application/json")
    detail = "; ".join(f"{check.name}: {check.detail}" for check in failed)
    members = {"checks": [check.model_dump() for check in checks]}
    fault = Unavailable(detail, code="not_ready").fault()
    return render(problem_of(fault, 503, request_id_of(request), **members))


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Stillhouse</title>
<h1>Stillhouse</h1>
<p>Compression is a function from a model to a model.</p>
<ul>
<li><a href="/docs">Documentation of the HTTP interface</a> (<a href="/openapi.json">OpenAPI</a>)</li>
<li>Health: <a href="/livez">alive</a>, <a href="/readyz">ready</a>, <a href="/metrics">metrics</a></li>
</ul>
</html>
"""


@router.get("/", response_class=HTMLResponse, responses=text_answer("A page of links.", PAGE, "text/html"))
async def index() -> HTMLResponse:
    """Show where documentation and health are."""
    return HTMLResponse(PAGE)
