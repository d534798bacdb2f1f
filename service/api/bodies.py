"""JSON bodies: of the right type and no larger than allowed, before anything parses them."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message, Receive

from service.contract.errors import TooLarge, UnsupportedMediaType

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def _has_body(request: Request) -> bool:
    return "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"


def _check_type(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMediaType(f"the body must be application/json; got {kind[:100] or 'no Content-Type'}")


def _too_large(limit: int) -> str:
    return f"the body is larger than {limit} bytes; files go to /v1/uploads"


def _check_length(request: Request, limit: int) -> None:
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limit:
        raise TooLarge(_too_large(limit))


def _limited(receive: Receive, limit: int) -> Receive:
    """Count what arrives; a chunked body announces no length."""
    seen = 0

    async def receive_and_count() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise HTTPException(413, _too_large(limit))  # the framework passes no other error through its parser
        return message

    return receive_and_count


class JsonRoute(APIRoute):
    """A route whose body, if it takes one, is JSON."""

    def get_route_handler(self) -> Handler:
        """Return the handler that checks a body and then parses it."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def check_and_handle(request: Request) -> Response:
            if not _has_body(request):
                return await handle(request)
            limit = request.app.state.services.settings.max_request_bytes
            _check_type(request)
            _check_length(request, limit)
            return await handle(Request(request.scope, _limited(request.receive, limit)))

        return check_and_handle
