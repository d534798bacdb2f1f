"""Entity tags: a strong tag for each body, and the conditions that name tags (RFC 9110, 8.8 and 13)."""

import hashlib
import re
from collections.abc import Mapping

from fastapi import Request, Response
from pydantic import BaseModel

TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')


def tag_of(content: bytes) -> str:
    """Return the strong entity tag of a body."""
    return f'"{hashlib.sha256(content).hexdigest()[:40]}"'


def named_tags(field: str) -> set[str]:
    """Return the tags in an If-None-Match or If-Match field; a weak one without its mark."""
    return {tag.removeprefix("W/") for tag in TAG.findall(field)}


def names(field: str | None, tag: str) -> bool:
    """Whether the field names this tag, or any."""
    return field is not None and (field.strip() == "*" or tag in named_tags(field))


def unchanged(request: Request, tag: str) -> bool:
    """Whether the client has this body already."""
    return names(request.headers.get("if-none-match"), tag)


def conditional_response(request: Request, body: BaseModel, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a body and its tag, or with 304 when the client has it."""
    content = body.model_dump_json(by_alias=True).encode()
    tagged = {"ETag": tag_of(content), "Cache-Control": "private, no-cache", **(headers or {})}
    if unchanged(request, tagged["ETag"]):
        return Response(status_code=304, headers=tagged)
    return Response(content, headers=tagged, media_type="application/json")
