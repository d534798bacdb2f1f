"""Uploads: resumable, one file each (draft-ietf-httpbis-resumable-upload).

A POST makes an upload and may carry all of it, a part or nothing; PATCH appends at the offset that
HEAD tells. The simple case is one `curl -X POST --upload-file F`.
"""

import shutil
from typing import Any

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from service.api.deps import Services, ServicesDep, Submitter, owned
from service.api.documents import answers, header
from service.api.reception import Portion, Reception, forget
from service.api.upload_fields import (
    PARTIAL,
    Complete,
    Length,
    Offset,
    ReprDigest,
    content_length,
    promised_sha256,
    state_fields,
)
from service.contract.errors import TooLarge, Unavailable, UnsupportedMediaType
from service.contract.ids import new_id
from service.contract.records import Upload
from service.keys import Caller

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])


class UploadBegun(BaseModel):
    """An upload that lacks bytes, or the word that it is complete."""

    id: str
    offset: int = Field(description="How many bytes have arrived.")
    length: int | None = Field(description="How many there will be, when that was announced.")


class UploadDone(BaseModel):
    """A complete upload."""

    id: str
    size: int = Field(description="In bytes.")
    sha256: str = Field(description="In hexadecimal digits.")


STATE = {
    "Upload-Offset": header("How many bytes have arrived.", 0),
    "Upload-Complete": header("`?1` once nothing is missing.", "?0"),
    "Upload-Limit": header("The largest upload that is taken.", "max-size=68719476736"),
    "Upload-Length": header("Bytes of the whole upload, when it is known.", 60000),
    "Repr-Digest": header("SHA-256 of a complete upload.", "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"),
    "Cache-Control": header("Always no-store.", "no-store"),
}
LOCATION = {"Location": header("The new upload.", "/v1/uploads/upl_01ktcz5vwm9j6p2n4qe8rhsxtb")}


def _body(media_type: str) -> dict[str, Any]:
    content = {media_type: {"schema": {"type": "string", "format": "binary"}, "example": "(the file's bytes)"}}
    return {"requestBody": {"required": False, "content": content}}


def _create(services: Services, caller: Caller, length: int | None, expected: str | None) -> Upload:
    limit = services.settings.max_upload_bytes
    if length is not None and length > limit:
        raise TooLarge(f"an upload may have at most {limit} bytes; {length} were announced")
    free = shutil.disk_usage(services.parts.folder).free - services.settings.min_free_bytes
    if length is not None and length > free:
        raise Unavailable(f"{max(free, 0)} bytes of disk are free for uploads and {length} were announced")
    with services.database.write() as session:
        upload = Upload(id=new_id("upl"), owner=caller.owner, length=length, expected_sha256=expected)
        session.add(upload)
        session.flush()
        session.refresh(upload)
    return upload


def _answer(services: Services, upload: Upload, status: int) -> Response:
    fields = state_fields(upload, upload.offset, services.settings)
    if status == 201:
        fields["Location"] = f"/v1/uploads/{upload.id}"
    body: BaseModel
    if upload.sha256 is not None:
        body = UploadDone(id=upload.id, size=upload.offset, sha256=upload.sha256)
    else:
        body = UploadBegun(id=upload.id, offset=upload.offset, length=upload.length)
    return Response(body.model_dump_json(), status, fields, "application/json")


@router.post(
    "",
    status_code=201,
    response_model=UploadDone | UploadBegun,
    responses=answers({201: {"description": "Made; complete or begun.", "headers": LOCATION | STATE}}, 400, 409, 413),
    openapi_extra=_body("application/octet-stream"),
)
async def create_upload(
    request: Request,
    services: ServicesDep,
    caller: Submitter,
    upload_complete: Complete = None,
    upload_length: Length = None,
    digest: ReprDigest = None,
) -> Response:
    """Make an upload: all of it, or with `Upload-Complete: ?0` a first part or nothing."""
    expected = promised_sha256(digest)
    portion = Portion(0, upload_complete != "?0", content_length(request), upload_length, expected)
    length = portion.implied_length if upload_length is None else upload_length
    upload = await run_sync(_create, services, caller, length, expected)
    try:
        upload = await Reception(services, caller, upload.id, portion).receive(request)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await run_sync(forget, services, upload.id)  # nobody was told its name
        raise
    return _answer(services, upload, 201)


def _stand(services: Services, caller: Caller, upload_id: str) -> tuple[Upload, int]:
    """Return an upload and the offset at which it continues."""
    with services.database.read() as session:
        upload = owned(session, Upload, upload_id, caller)
    if upload.sha256 is not None:
        return upload, upload.offset
    return upload, min(upload.offset, services.parts.size(upload_id))


@router.head(
    "/{upload_id}",
    status_code=204,
    responses=answers({204: {"description": "Where the upload stands.", "headers": STATE}}, 404),
)
def upload_offset(services: ServicesDep, caller: Submitter, upload_id: str) -> Response:
    """Ask where an upload continues."""
    upload, offset = _stand(services, caller, upload_id)
    return Response(status_code=204, headers=state_fields(upload, offset, services.settings))


@router.patch(
    "/{upload_id}",
    response_model=UploadDone,
    responses=answers(
        {
            200: {"description": "Complete.", "headers": STATE},
            204: {"description": "The bytes arrived; more are to come.", "headers": STATE},
        },
        400,
        404,
        409,
        413,
        415,
    ),
    openapi_extra=_body(PARTIAL),
)
async def append_to_upload(
    request: Request,
    services: ServicesDep,
    caller: Submitter,
    upload_id: str,
    upload_offset: Offset,
    upload_complete: Complete = None,
    upload_length: Length = None,
    digest: ReprDigest = None,
) -> Response:
    """Append bytes at the upload's offset; the last part says `Upload-Complete: ?1`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != PARTIAL:
        raise UnsupportedMediaType(f"a part of an upload is {PARTIAL}; got {kind[:100] or 'no Content-Type'}")
    portion = Portion(
        upload_offset, upload_complete == "?1", content_length(request), upload_length, promised_sha256(digest)
    )
    await run_sync(_stand, services, caller, upload_id)
    upload = await Reception(services, caller, upload_id, portion).receive(request)
    if upload.sha256 is not None:
        return _answer(services, upload, 200)
    return Response(status_code=204, headers=state_fields(upload, upload.offset, services.settings))


def _delete(services: Services, caller: Caller, upload_id: str) -> None:
    _stand(services, caller, upload_id)
    part = services.parts.open(upload_id)
    try:
        forget(services, upload_id)
    finally:
        part.close()


@router.delete("/{upload_id}", status_code=204, responses=answers({204: {"description": "Gone."}}, 404, 409))
def delete_upload(services: ServicesDep, caller: Submitter, upload_id: str) -> Response:
    """Give up an upload. Models and datasets made of it keep their files."""
    _delete(services, caller, upload_id)
    return Response(status_code=204)
