"""Receiving an upload's bytes: written once, hashed as they arrive, with memory that stays flat.

The database's offset says how many bytes count; the part file may hold more (a crash) and is cut
back. What a broken connection delivered counts; what runs past the announced length does not.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.to_thread import run_sync
from fastapi import Request
from sqlalchemy import delete, update
from starlette.requests import ClientDisconnect

from service.api.deps import Services, owned
from service.api.part_files import BLOCK_BYTES, Part
from service.contract.contents import exclusive, release
from service.contract.database import clock
from service.contract.errors import Conflict, DigestMismatch, Malformed, NotFound, TooLarge, WrongOffset
from service.contract.records import Upload
from service.keys import Caller

SILENCE_SECONDS = 60.0  # a sender that says nothing for this long has gone, and must not hold the lock
RECORD_BYTES = 64 << 20  # how much a crash of ours can cost the client


@dataclass(frozen=True)
class Portion:
    """What one request says about the bytes that it carries."""

    offset: int
    complete: bool
    content_length: int | None
    upload_length: int | None = None
    expected_sha256: str | None = None

    @property
    def implied_length(self) -> int | None:
        """The upload's length as this request tells it: a last request ends where the upload does."""
        if self.complete and self.content_length is not None:
            return self.offset + self.content_length
        return self.upload_length


async def blocks(request: Request) -> AsyncIterator[bytes]:
    """Yield the body in blocks of about 1 MiB, however small the pieces in which it arrives."""
    buffer = bytearray()
    stream = request.stream()
    try:
        while True:
            with anyio.fail_after(SILENCE_SECONDS):
                piece = await anext(stream, None)
            if piece is None:
                break
            buffer += piece
            if len(buffer) >= BLOCK_BYTES:
                yield bytes(buffer)
                buffer.clear()
    except ClientDisconnect:
        yield bytes(buffer)
        raise
    except TimeoutError:
        yield bytes(buffer)
        detail = f"nothing arrived for {SILENCE_SECONDS:g} s; ask for the upload's offset and go on from there"
        raise Malformed(detail, code="upload_stalled") from None
    yield bytes(buffer)


class Reception:
    """One request's share of an upload."""

    def __init__(self, services: Services, caller: Caller, upload_id: str, portion: Portion) -> None:
        self.services, self.caller, self.upload_id, self.portion = services, caller, upload_id, portion

    async def receive(self, request: Request) -> Upload:
        """Append what the request carries; return the upload as it stands then."""
        part = await run_sync(self.services.parts.open, self.upload_id)
        try:
            upload = await run_sync(self._begin, part)
            try:
                await self._pour(request, part, upload.length)
            finally:
                with anyio.CancelScope(shield=True):
                    await run_sync(self._record, part)
            if self.portion.complete:
                return await run_sync(self._finish, part)
            return await run_sync(self._load)
        finally:
            part.close()

    def _load(self) -> Upload:
        with self.services.database.read() as session:
            return owned(session, Upload, self.upload_id, self.caller)

    def _begin(self, part: Part) -> Upload:
        """Check the request against the upload, now that nobody else can change it."""
        try:
            upload = self._load()
        except NotFound:
            self.services.parts.discard(self.upload_id)
            raise
        if upload.sha256 is not None:
            self.services.parts.discard(self.upload_id)
            raise Conflict("the upload is complete; nothing can be added to it", code="completed_upload")
        self.services.parts.restore(self.upload_id, part, upload.offset)
        if self.portion.offset != part.offset:
            self.services.parts.keep(self.upload_id, part)
            raise WrongOffset(
                f"the upload has {part.offset} bytes and the request continues at {self.portion.offset}; "
                f"send the rest with Upload-Offset: {part.offset}",
                expected=part.offset,
                provided=self.portion.offset,
            )
        try:
            return self._announce(upload)
        except (Malformed, TooLarge):
            self.services.parts.keep(self.upload_id, part)
            raise

    def _announce(self, upload: Upload) -> Upload:
        """Compare what this request says with what earlier ones said, before its first byte is read."""
        told = (upload.length, self.portion.upload_length, self.portion.implied_length)
        said = {length for length in told if length is not None}
        if len(said) > 1:
            raise Malformed(
                f"the upload's length is said to be {' and '.join(map(str, sorted(said)))} bytes; "
                f"go on at offset {self.portion.offset} with one of them",
                code="inconsistent_upload_length",
            )
        length = next(iter(said), None)
        end = max(self.portion.offset + (self.portion.content_length or 0), length or 0)
        if end > self._limit(length):
            raise self._beyond(length)
        self._update(length=length, expected_sha256=self.portion.expected_sha256 or upload.expected_sha256)
        upload.length = length
        return upload

    def _limit(self, length: int | None) -> int:
        largest = self.services.settings.max_upload_bytes
        return largest if length is None else min(length, largest)

    def _beyond(self, length: int | None) -> Malformed | TooLarge:
        if length is None or length > self.services.settings.max_upload_bytes:
            return TooLarge(f"an upload may have at most {self.services.settings.max_upload_bytes} bytes")
        return Malformed(
            f"the request carries bytes beyond the announced length of {length}; none of it was kept",
            code="inconsistent_upload_length",
        )

    async def _pour(self, request: Request, part: Part, length: int | None) -> None:
        start, hasher, recorded = part.offset, part.hasher.copy(), part.offset
        async for block in blocks(request):
            if not block:
                continue
            if part.offset + len(block) > self._limit(length):
                await run_sync(part.rewind, start, hasher)
                raise self._beyond(length)
            await run_sync(part.append, block)
            if part.offset - recorded >= RECORD_BYTES and not self._may_rewind(length):
                await run_sync(self._record, part)
                recorded = part.offset

    def _may_rewind(self, length: int | None) -> bool:
        """Whether the end may yet prove the request wrong: its own length is unknown, the upload's is not."""
        return length is not None and self.portion.content_length is None

    def _record(self, part: Part) -> None:
        """Let what has arrived count."""
        part.sync()
        self.services.parts.keep(self.upload_id, part)
        self._update(offset=part.offset)

    def _update(self, **values: Any) -> None:
        with self.services.database.write() as session:
            statement = update(Upload).where(Upload.id == self.upload_id, Upload.sha256.is_(None))
            session.execute(statement.values(updated_at=clock(), **values))

    def _finish(self, part: Part) -> Upload:
        """Check length and digest, and move the file into the storage."""
        upload = self._load()
        if upload.length is not None and part.offset != upload.length:
            raise Malformed(
                f"the upload ends after {part.offset} bytes and {upload.length} were announced; "
                f"continue at Upload-Offset: {part.offset}",
                code="inconsistent_upload_length",
            )
        digest, expected = part.hasher.hexdigest(), upload.expected_sha256
        if expected is not None and expected != digest:
            forget(self.services, self.upload_id)
            raise DigestMismatch(
                f"the {part.offset} bytes that arrived have the SHA-256 {digest} and {expected} was promised; "
                "nothing was kept, upload the file again"
            )
        self._adopt(part, digest)
        return self._load()

    def _adopt(self, part: Part, digest: str) -> None:
        values = {"sha256": digest, "offset": part.offset, "length": part.offset, "updated_at": clock()}
        with exclusive(self.services.database) as session:
            session.execute(update(Upload).where(Upload.id == self.upload_id).values(**values))
            self.services.storage.adopt(part.path, digest)
        self.services.parts.discard(self.upload_id)


def forget(services: Services, upload_id: str) -> None:
    """Remove an upload and its bytes, unless something was made of them; the caller holds its lock."""
    with services.database.write() as session:
        upload = session.get(Upload, upload_id)
        digests = [upload.sha256] if upload is not None and upload.sha256 is not None else []
        session.execute(delete(Upload).where(Upload.id == upload_id))
    services.parts.discard(upload_id)
    release(services.database, services.storage, digests)
