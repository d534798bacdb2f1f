"""Making models and datasets of uploads, and deleting them."""

from collections.abc import Mapping
from typing import TypeVar

from fastapi import Response
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.api import file_roles
from service.api.deps import Services, owned
from service.api.idempotency import Answer, body_digest, once
from service.api.resource_views import dataset_view, model_view
from service.contract import resources
from service.contract.contents import release
from service.contract.errors import FieldError, Invalid
from service.contract.jobs import UNFINISHED
from service.contract.records import DatasetRecord, File, ModelRecord, Upload
from service.contract.specs import DatasetDeclaration, ModelDeclaration
from service.contract.storage import StoredFile
from service.keys import Caller

Declaration = ModelDeclaration | DatasetDeclaration
Row = TypeVar("Row", ModelRecord, DatasetRecord)


def named_files(session: Session, caller: Caller, files: Mapping[str, str]) -> dict[str, StoredFile]:
    """Return the files that a declaration names, all of them the caller's; they stay until the transaction ends."""
    found: dict[str, StoredFile] = {}
    wrong: list[FieldError] = []
    for path, source in files.items():
        find = _uploaded if source.startswith("upl_") else _of_resource
        file = find(session, caller, source)
        if isinstance(file, StoredFile):
            found[path] = file
        else:
            wrong.append(FieldError(pointer=f"/files/{path}", detail=file))
    if wrong:
        raise Invalid(f"{wrong[0].pointer}: {wrong[0].detail}", errors=wrong)
    return found


def _uploaded(session: Session, caller: Caller, upload_id: str) -> StoredFile | str:
    """Return the file behind a complete upload, or what is wrong with it."""
    upload = session.get(Upload, upload_id, with_for_update={"read": True})
    if upload is None or upload.owner != caller.owner:
        return f"there is no upload {upload_id}"
    if upload.sha256 is None:
        of = "an unknown number of" if upload.length is None else upload.length
        return f"the upload {upload_id} has {upload.offset} of {of} bytes; finish it first"
    return StoredFile(upload.sha256, upload.offset)


def _of_resource(session: Session, caller: Caller, source: str) -> StoredFile | str:
    """Return a file of a model or dataset, or what is wrong with it."""
    resource_id, _, path = source.partition("/")
    row = resources.find(session, resource_id, lock=True)
    if row is None or row.owner != caller.owner:
        return f"there is no {'model' if resource_id.startswith('mdl_') else 'dataset'} {resource_id}"
    files = resources.files_of(session, resource_id)
    return files.get(path) or f"{resource_id} has no file {path}; it has {', '.join(files)}"


def shown(row: ModelRecord | DatasetRecord, files: Mapping[str, StoredFile]) -> BaseModel:
    """Return a row as its kind is shown."""
    return model_view(row, files) if isinstance(row, ModelRecord) else dataset_view(row, files)


def register(services: Services, caller: Caller, declaration: Declaration, key: str | None) -> Response:
    """Insert a model or dataset, commit, and ring for its inspection."""
    if isinstance(declaration, ModelDeclaration):
        kind = "models"
        file_roles.check_model(declaration)
    else:
        kind = "datasets"
        file_roles.check_dataset(declaration)

    with services.in_flight.hold(caller.owner, key):
        with services.database.write() as session:

            def make() -> Answer:
                files = named_files(session, caller, declaration.files)
                row = resources.register(session, caller.owner, declaration, files)
                session.refresh(row)
                body = shown(row, files).model_dump(mode="json")
                return Answer(201, {"Location": f"/v1/{kind}/{row.id}"}, body, row.id)

            answer, made = once(session, caller.owner, key, body_digest(f"/v1/{kind}", declaration), make)
        if made:
            services.doorbell.ring("inspections", answer.resource_id)
    return answer.response()


def load(services: Services, caller: Caller, record: type[Row], resource_id: str) -> tuple[Row, dict[str, StoredFile]]:
    """Return the caller's model or dataset with its files. Raises NotFound."""
    with services.database.read() as session:
        row = owned(session, record, resource_id, caller)
        return row, resources.files_of(session, resource_id)


def files_by_resource(session: Session, identifiers: list[str]) -> dict[str, dict[str, StoredFile]]:
    """Return the files of several models or datasets in one query."""
    found: dict[str, dict[str, StoredFile]] = {identifier: {} for identifier in identifiers}
    for file in session.scalars(select(File).where(File.resource_id.in_(identifiers)).order_by(File.path)):
        found[file.resource_id][file.path] = StoredFile(file.sha256, file.size)
    return found


def remove(services: Services, caller: Caller, record: type[Row], resource_id: str) -> None:
    """Delete a model or dataset that no unfinished job uses. Raises NotFound or Conflict."""
    with services.database.write() as session:
        owned(session, record, resource_id, caller)
        digests = resources.remove(session, resource_id, UNFINISHED)
    release(services.database, services.storage, digests)
