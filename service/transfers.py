"""Files to and from a Stillhouse: streamed, resumed where a connection was cut, and checked by SHA-256.

An upload follows draft-ietf-httpbis-resumable-upload: it is made empty, so that it has a name before
its first byte is sent; after a cut, HEAD tells where it continues. A download continues its `.part`
file by Range, as long as the service still holds the same bytes (If-Range).
"""

import base64
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.connection import RETRIES, Connection, Corrupted, ProblemError, Unreachable, pause_before

CHUNK_BYTES = 1 << 18
Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class Upload:
    """A file that has arrived."""

    id: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Standing:
    """How far an upload has come."""

    offset: int
    is_complete: bool


def hash_of(path: Path) -> str:
    """Return a local file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def upload(connection: Connection, path: Path, progress: Progress | None = None) -> Upload:
    """Upload a file, going on where it was cut. Raises ProblemError and Unreachable."""
    size, sha256 = path.stat().st_size, hash_of(path)
    digest = base64.b64encode(bytes.fromhex(sha256)).decode()
    begin = {"Upload-Complete": "?0", "Upload-Length": str(size), "Repr-Digest": f"sha-256=:{digest}:"}
    created = connection.request("POST", "/v1/uploads", headers=begin, content=b"")
    location = created.headers["location"]
    standing, failures = Standing(0, is_complete=False), 0
    while not standing.is_complete:
        before = standing.offset
        try:
            _append(connection, location, path, standing.offset, progress)
            break
        except (Unreachable, ProblemError) as error:
            if isinstance(error, ProblemError) and not _can_go_on(error):
                raise
            standing = _standing(connection, location)
            failures = 0 if standing.offset > before else failures + 1
            if failures > RETRIES:
                raise
            time.sleep(pause_before(failures, None))
    return Upload(location.rsplit("/", 1)[-1], size, sha256)


def _can_go_on(problem: ProblemError) -> bool:
    """Whether asking for the offset and sending the rest may help."""
    return problem.retryable or problem.code in {"wrong_offset", "completed_upload", "conflict", "upload_stalled"}


def _append(connection: Connection, location: str, path: Path, offset: int, progress: Progress | None) -> None:
    size = path.stat().st_size
    headers = {
        "Content-Type": "application/partial-upload",
        "Content-Length": str(size - offset),
        "Upload-Offset": str(offset),
        "Upload-Complete": "?1",
    }
    content = _chunks(path, offset, size, progress)
    connection.request("PATCH", location, headers=headers, content=content, repeatable=False)


def _chunks(path: Path, offset: int, size: int, progress: Progress | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(min(CHUNK_BYTES, size - offset)):
            yield chunk
            offset += len(chunk)
            if progress is not None:
                progress(offset, size)


def _standing(connection: Connection, location: str) -> Standing:
    fields = connection.request("HEAD", location).headers
    return Standing(int(fields["upload-offset"]), fields["upload-complete"] == "?1")


def download(connection: Connection, url: str, target: Path, progress: Progress | None = None) -> str:
    """Bring a file to `target` and return its SHA-256, which was compared with the ETag.

    Raises ProblemError, Unreachable, and Corrupted when the bytes are not those of the ETag.
    """
    part = target.with_name(f"{target.name}.part")
    tag_file = target.with_name(f"{target.name}.etag")
    for attempt in range(RETRIES + 1):
        try:
            _fetch(connection, url, part, tag_file, progress)
            break
        except Unreachable:
            if attempt == RETRIES:
                raise
            time.sleep(pause_before(attempt, None))
    expected, found = tag_file.read_text().strip('"'), hash_of(part)
    tag_file.unlink()
    if found != expected:
        part.unlink()
        raise Corrupted(f"{target.name}: the bytes that arrived have the SHA-256 {found}, the service holds {expected}")
    part.replace(target)
    return found


def _fetch(connection: Connection, url: str, part: Path, tag_file: Path, progress: Progress | None) -> None:
    headers, mode = {"Accept-Encoding": "identity"}, "wb"
    if part.exists() and tag_file.exists() and (have := part.stat().st_size):
        headers |= {"Range": f"bytes={have}-", "If-Range": tag_file.read_text()}
    try:
        with connection.stream("GET", url, headers=headers) as response:
            if response.status_code == httpx.codes.PARTIAL_CONTENT:
                mode = "ab"
            tag_file.write_text(response.headers["etag"])
            with part.open(mode) as file:
                done = file.tell()
                total = done + int(response.headers.get("content-length", 0))
                for chunk in response.iter_bytes():  # as they arrive, so that a cut loses nothing
                    done += file.write(chunk)
                    if progress is not None:
                        progress(done, total)
    except ProblemError as problem:
        if problem.status != httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # the part was whole already; its hash decides
