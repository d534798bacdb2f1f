"""A body that is made while it is sent, and let go of when its client has gone.

A generator that is left in the middle holds its file open until the garbage collector finds it, which
on a quiet server is never.
"""

from collections.abc import Generator, Mapping

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class Outflow(StreamingResponse):
    """A streamed response that closes its content, however it ends."""

    def __init__(
        self, content: Generator[bytes | str, None, None], status_code: int, headers: Mapping[str, str], media_type: str
    ) -> None:
        super().__init__(content, status_code, headers, media_type)
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the body."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._content.close()
