"""Every request: its id, its line in the log, its time, and the answer when all else failed.

Plain ASGI, so that streams pass through unbuffered. A fault of ours becomes a problem here, inside
the one place that sets `X-Request-Id`, so that even this answer carries it.
"""

import re
import time
import traceback
from typing import Any

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import problem_response
from service.api.telemetry import Telemetry
from service.contract.errors import Internal
from service.contract.ids import new_id

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
QUIET = frozenset({"/livez", "/readyz", "/metrics"})  # probes would drown the log

log = structlog.get_logger("stillhouse.access")


def request_id(scope: Scope) -> str:
    """Return the id that the client gave, when it is a sane one, or a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else new_id("req")


def route_of(scope: Scope) -> str:
    """Return the route's template, so that a metric has no label per resource."""
    return str(getattr(scope.get("route"), "path", "unmatched"))


class Access:
    """The middleware around everything."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app, self.telemetry = app, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["request_id"] = request_id(scope)
        status: list[int] = []
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = scope["request_id"]
                headers.setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        try:
            await self._answer(scope, receive, send_with_id, status)
        finally:
            self._record(scope, status, time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, status: list[int]) -> None:
        try:
            await self.app(scope, receive, send)
        except ClientDisconnect:
            return  # nobody is left to answer
        except Exception:
            fields = {"request_id": scope["request_id"], "method": scope["method"], "path": scope["path"]}
            log.error("fault", **fields, exception=traceback.format_exc())  # noqa: TRY400  locals in it would show keys
            if status:
                raise  # too late for a problem; the broken connection tells the client
            error = Internal("the service failed to answer; its log tells more under this request_id")
            await problem_response(Request(scope), error)(scope, receive, send)

    def _record(self, scope: Scope, status: list[int], seconds: float) -> None:
        route, code = route_of(scope), status[0] if status else 499
        self.telemetry.observe(scope["method"], route, code, seconds)
        fields: dict[str, Any] = {"request_id": scope["request_id"], "method": scope["method"], "route": route}
        if scope["path"] not in QUIET:
            log.info("request", **fields, status=code, seconds=round(seconds, 6))
