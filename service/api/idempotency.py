"""Idempotency keys: a POST that is sent again makes nothing again.

The key's row, what the request makes and the stored answer are written in one transaction, so that
a crash leaves either all of them or none, and a refused request may be mended and sent again under
its key. Two requests at once: the later of the two is told that the first is still in flight.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Annotated, Any

from fastapi import Header, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.contract.database import clock
from service.contract.errors import Conflict, Invalid
from service.contract.records import IdempotencyRecord

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Chosen by the client; the same key and body give the original answer again.",
        examples=["0b9a6f4e-nightly-distillation"],
    ),
]


class StillInFlight(Conflict):
    """The first request with this key has not been answered yet."""

    code, title, retryable = "idempotency_in_flight", "The first request is still in flight", True


class InFlight:
    """The keys of requests that this process is answering."""

    def __init__(self) -> None:
        self._keys: set[tuple[str, str]] = set()
        self._lock = Lock()

    @contextmanager
    def hold(self, owner: str, key: str | None) -> Iterator[None]:
        """Be the only request with this key. Raises StillInFlight."""
        if key is None:
            yield
            return
        with self._lock:
            if (owner, key) in self._keys:
                raise StillInFlight("a request with this Idempotency-Key is being answered; send it again in a moment")
            self._keys.add((owner, key))
        try:
            yield
        finally:
            with self._lock:
                self._keys.discard((owner, key))


@dataclass(frozen=True)
class Answer:
    """What a request made: the response that is sent, and sent again."""

    status: int
    headers: Mapping[str, str]
    body: dict[str, Any]
    resource_id: str

    def response(self) -> Response:
        """Return the response."""
        return JSONResponse(self.body, self.status, dict(self.headers))


def body_digest(path: str, body: BaseModel) -> str:
    """Return what tells one request from another: its path and its resolved body."""
    return hashlib.sha256(f"{path}\n{body.model_dump_json()}".encode()).hexdigest()


def once(session: Session, owner: str, key: str | None, digest: str, make: Callable[[], Answer]) -> tuple[Answer, bool]:
    """Return the answer, and whether `make` made it now. Raises Invalid for another body under the same key."""
    if key is None:
        return make(), True
    if not _reserve(session, owner, key, digest):
        return _original(session, owner, key, digest), False
    answer = make()
    record = session.get_one(IdempotencyRecord, (owner, key))
    record.resource_id = answer.resource_id
    record.response = {"status": answer.status, "headers": dict(answer.headers), "body": answer.body}
    session.flush()
    return answer, True


def _reserve(session: Session, owner: str, key: str, digest: str) -> bool:
    """Take the key; waits for another process's transaction that holds it."""
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    row = {"owner": owner, "key": key, "body_sha256": digest, "created_at": clock()}
    statement = dialect.insert(IdempotencyRecord).values(**row).on_conflict_do_nothing()
    return session.scalar(statement.returning(IdempotencyRecord.key)) is not None


def _original(session: Session, owner: str, key: str, digest: str) -> Answer:
    record = session.get_one(IdempotencyRecord, (owner, key))
    if record.body_sha256 != digest:
        detail = "this Idempotency-Key was used with another request; a new request needs a new key"
        raise Invalid(detail, code="idempotency_key_reuse")
    stored = record.response or {}
    return Answer(stored["status"], stored["headers"], stored["body"], record.resource_id or "")
