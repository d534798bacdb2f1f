"""Entity tags: a strong tag for each body, and the conditions that name tags (RFC 9110, 8.8 and 13)."""

import hashlib
import re
from collections.abc import Iterable, Mapping

from fastapi import Request, Response
from pydantic import BaseModel

TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')


def tag_of(content: bytes) -> str:
    """Return the strong entity tag of a body."""
    return f'"{hashlib.sha256(content).hexdigest()[:40]}"'


def field_of(request: Request, name: str) -> str | None:
    """Return a field whose value is a list, which a client may send in several lines."""
    lines = request.headers.getlist(name)
    return ", ".join(lines) if lines else None


def _names(field: str, tags: Iterable[str]) -> bool:
    return field.strip() == "*" or not set(TAG.findall(field)).isdisjoint(tags)


def unchanged(request: Request, tag: str) -> bool:
    """Whether the client has this body already; here a weak tag counts like a strong one."""
    field = field_of(request, "if-none-match")
    return field is not None and _names(field, {tag, f"W/{tag}"})


def is_another(request: Request, tag: str) -> bool:
    """Whether If-Match asks for another body; there only a strong tag counts."""
    field = field_of(request, "if-match")
    return field is not None and not _names(field, {tag})


def conditional_response(request: Request, body: BaseModel, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a body and its tag, or with 304 when the client has it."""
    content = body.model_dump_json(by_alias=True).encode()
    tagged = {"ETag": tag_of(content), "Cache-Control": "private, no-cache", **(headers or {})}
    if unchanged(request, tagged["ETag"]):
        return Response(status_code=304, headers=tagged)
    return Response(content, headers=tagged, media_type="application/json")
