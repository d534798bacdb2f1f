"""Times on the wire: RFC 3339, UTC, milliseconds."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field

Timestamp = Annotated[
    str,
    Field(examples=["2026-01-05T09:30:00.000Z"], json_schema_extra={"format": "date-time"}),
]


def rfc3339(seconds: float) -> str:
    """Return seconds since 1970 as a time."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def rfc3339_or_none(seconds: float | None) -> str | None:
    """Return seconds since 1970 as a time, if there are any."""
    return None if seconds is None else rfc3339(seconds)
