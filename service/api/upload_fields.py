"""The header fields of a resumable upload (draft-ietf-httpbis-resumable-upload, RFC 9530)."""

import base64
import binascii
import re
from typing import Annotated

from fastapi import Header, Request

from service.contract.errors import FieldError, Invalid
from service.contract.records import Upload
from service.contract.settings import Settings

MAX_INTEGER = 10**15 - 1  # of a structured field (RFC 8941)
PARTIAL = "application/partial-upload"
SHA256 = re.compile(r"(?:^|,)\s*sha-256\s*=\s*:([A-Za-z0-9+/=]*):\s*(?:;[^,]*)?(?:,|$)")

Complete = Annotated[
    str | None,
    Header(
        alias="Upload-Complete",
        pattern=r"^\?[01]$",
        description="`?1` when this request carries the upload's last bytes; left out, a POST is complete.",
        examples=["?0"],
    ),
]
Length = Annotated[
    int | None,
    Header(alias="Upload-Length", ge=0, le=MAX_INTEGER, description="Bytes of the whole upload.", examples=[60000]),
]
Offset = Annotated[
    int,
    Header(alias="Upload-Offset", ge=0, le=MAX_INTEGER, description="Where this request's bytes begin.", examples=[0]),
]
ReprDigest = Annotated[
    str | None,
    Header(
        alias="Repr-Digest",
        max_length=1024,
        description="`sha-256=:BASE64:` of the whole upload; other algorithms are passed over.",
        examples=["sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"],
    ),
]


def promised_sha256(field: str | None) -> str | None:
    """Return the SHA-256 of a Repr-Digest field as hexadecimal digits, if it has one. Raises Invalid."""
    if field is None or (found := SHA256.search(field)) is None:
        if field is not None and "sha-256" in field:
            raise _wrong_digest()
        return None
    try:
        digest = base64.b64decode(found[1], validate=True)
    except binascii.Error:
        raise _wrong_digest() from None
    if len(digest) != 32:
        raise _wrong_digest()
    return digest.hex()


def _wrong_digest() -> Invalid:
    detail = "expected sha-256=:BASE64: with the 32 bytes of a SHA-256"
    return Invalid(f"Repr-Digest: {detail}", errors=[FieldError(pointer="/header/Repr-Digest", detail=detail)])


def repr_digest(sha256: str) -> str:
    """Return the Repr-Digest field for a SHA-256 in hexadecimal digits."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def content_length(request: Request) -> int | None:
    """Return how many bytes the request announces, if it does."""
    field = request.headers.get("content-length")
    return int(field) if field is not None and field.isdigit() else None


def state_fields(upload: Upload, offset: int, settings: Settings) -> dict[str, str]:
    """Return the fields that say where an upload stands."""
    complete = upload.sha256 is not None
    fields = {
        "Upload-Offset": str(offset),
        "Upload-Complete": "?1" if complete else "?0",
        "Upload-Limit": f"max-size={settings.max_upload_bytes}",
        "Cache-Control": "no-store",
    }
    if upload.length is not None:
        fields["Upload-Length"] = str(upload.length)
    if upload.sha256 is not None:
        fields["Repr-Digest"] = repr_digest(upload.sha256)
    return fields
