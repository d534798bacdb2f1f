"""Files as they leave: strong tags (the SHA-256), conditions, ranges, and digests (RFC 9530)."""

from fastapi import Request, Response
from sqlalchemy.orm import Session

from service.api.byte_ranges import requested_range
from service.api.conditional import is_another, unchanged
from service.api.documents import Answers, bytes_answer, header, problems
from service.api.outflow import Outflow
from service.api.upload_fields import repr_digest
from service.contract.errors import Internal, NotFound, PreconditionFailed
from service.contract.resources import files_of
from service.contract.storage import LocalStorage, StoredFile

BINARY = "application/octet-stream"
FIELDS = {
    "ETag": header("The SHA-256 in hexadecimal digits; strong.", '"e3b0c44298fc1c149afbf4c8996fb92427ae41e4"'),
    "Repr-Digest": header("The SHA-256 of the whole file.", "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"),
    "Accept-Ranges": header("Always bytes.", "bytes"),
    "Content-Disposition": header("The file's name.", 'attachment; filename="model.safetensors"'),
}
PART = FIELDS | {"Content-Range": header("Which bytes these are.", "bytes 0-1023/60000")}
GONE_RANGE = {"Content-Range": header("The file's size.", "bytes */60000")}
NOT_MODIFIED = {"description": "The client has it already.", "headers": FIELDS}


def file_answers() -> Answers:
    """Describe what a download can answer with."""
    answers = problems(404, 412, 416)
    answers[416]["headers"] = GONE_RANGE
    return answers | {
        200: bytes_answer("The file.", FIELDS, BINARY),
        206: bytes_answer("The asked-for bytes.", PART, BINARY),
        304: NOT_MODIFIED,
    }


def find_file(session: Session, resource_id: str, path: str) -> StoredFile:
    """Return a file of a model or dataset. Raises NotFound."""
    files = files_of(session, resource_id)
    if path not in files:
        raise NotFound(f"{resource_id} has no file of this name; it has {', '.join(files) or 'none'}")
    return files[path]


def fields_of(file: StoredFile, path: str) -> dict[str, str]:
    """Return the header fields that go with a file."""
    return {
        "ETag": f'"{file.sha256}"',
        "Repr-Digest": repr_digest(file.sha256),
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'attachment; filename="{path}"',
        "Cache-Control": "private, no-cache",
    }


def _asked_range(request: Request, tag: str, size: int) -> tuple[int, int] | None:
    """Return the range that counts: a GET's, unless an If-Range names other bytes; a date or a weak tag does."""
    if request.method != "GET" or request.headers.get("if-range", tag).strip() != tag:
        return None
    return requested_range(request.headers.get("range"), size)


def file_response(request: Request, storage: LocalStorage, file: StoredFile, path: str) -> Response:
    """Answer with a file, a range of it, or the word that the client has it."""
    fields = fields_of(file, path)
    if is_another(request, fields["ETag"]):
        raise PreconditionFailed(f"the file's ETag is {fields['ETag']}, which If-Match does not name")
    if unchanged(request, fields["ETag"]):
        return Response(status_code=304, headers=fields)
    asked = _asked_range(request, fields["ETag"], file.size)
    start, stop = asked or (0, file.size)
    status = 200
    if asked is not None:
        status, fields["Content-Range"] = 206, f"bytes {start}-{stop - 1}/{file.size}"
    fields["Content-Length"] = str(stop - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=fields, media_type=BINARY)
    try:
        content = storage.read(file.sha256, start, stop)
    except NotFound as error:
        raise Internal(f"the bytes of {path} are missing from the storage") from error
    return Outflow(content, status, fields, BINARY)
