"""Lists: newest first, by opaque tokens, filtered by state and labels.

A token says after which identifier the next page begins, so that what is added or deleted meanwhile
neither repeats nor hides an entry.
"""

import base64
import binascii
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request, Response
from pydantic import BaseModel
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from service.api.deps import is_id
from service.contract.errors import FieldError, Invalid
from service.contract.records import DatasetRecord, JobRecord, JobState, ModelRecord, ResourceState
from service.contract.specs import LABEL_PATTERN

Row = TypeVar("Row", JobRecord, ModelRecord, DatasetRecord)
MAX_LIMIT = 200
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Most entries of a page.")]
PageToken = Annotated[
    str | None, Query(max_length=512, description="`next_page_token` of the page before; opaque.", examples=[None])
]


def encode_token(position: str | int) -> str:
    """Return the token of the page after this position."""
    return base64.urlsafe_b64encode(json.dumps([1, position]).encode()).decode().rstrip("=")


def decode_token(token: str) -> Any:
    """Return the position in a token. Raises Invalid."""
    try:
        version, position = json.loads(base64.urlsafe_b64decode(token.encode() + b"=" * (-len(token) % 4)))
    except (ValueError, TypeError, binascii.Error, RecursionError):
        version, position = None, None
    if version != 1:
        raise wrong_query("page_token", "not a token of this service; leave it out to begin anew")
    return position


def wrong_query(name: str, detail: str) -> Invalid:
    """Return the error about a query parameter."""
    return Invalid(f"/query/{name}: {detail}", errors=[FieldError(pointer=f"/query/{name}", detail=detail)])


def _label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition(":")
    if not separator or not re.fullmatch(LABEL_PATTERN, key) or "\0" in value:
        raise wrong_query("label", f"a label is asked for as key:value; got {text[:100]!r}")
    return key, value


@dataclass(frozen=True)
class Listing:
    """What a list was asked for."""

    limit: int
    before: str | None
    states: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]

    def select(self, record: type[Row], owner: str) -> Select[Row]:
        """Return the statement for this page and one entry more, which tells whether there is a next."""
        statement = select(record).where(record.owner == owner)
        if self.before is not None:
            statement = statement.where(record.id < self.before)
        if self.states:
            statement = statement.where(record.state.in_(self.states))
        for key, value in self.labels:
            statement = statement.where(record.labels[key].as_string() == value)
        return statement.order_by(record.id.desc()).limit(self.limit + 1)

    def page(self, session: Session, record: type[Row], owner: str) -> tuple[Sequence[Row], str | None]:
        """Return this page's rows, and the next page's token. Raises Invalid for a state that the record has not."""
        known = [str(state) for state in (JobState if record is JobRecord else ResourceState)]
        if not set(self.states) <= set(known):
            raise wrong_query("state", f"expected some of {', '.join(known)}")
        rows = session.scalars(self.select(record, owner)).all()
        more = len(rows) > self.limit
        rows = rows[: self.limit]
        return rows, encode_token(rows[-1].id) if more else None


def _listing(
    limit: Limit = 50,
    page_token: PageToken = None,
    state: Annotated[list[str], Query(description="Only these states; may be repeated.")] = [],  # noqa: B006  FastAPI copies it
    label: Annotated[list[str], Query(description="Only with this label, `key:value`; may be repeated.")] = [],  # noqa: B006  see above
) -> Listing:
    before = None if page_token is None else decode_token(page_token)
    if page_token is not None and not (isinstance(before, str) and is_id(before)):
        raise wrong_query("page_token", "a token of another list")
    return Listing(limit, before, tuple(state), tuple(map(_label, label)))


ListingDep = Annotated[Listing, Depends(_listing)]


def page_response(request: Request, page: BaseModel, next_page_token: str | None) -> Response:
    """Return a page, with a link to the next."""
    response = Response(page.model_dump_json(), media_type="application/json")
    if next_page_token is not None:
        url = request.url.include_query_params(page_token=next_page_token)
        response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
    return response
