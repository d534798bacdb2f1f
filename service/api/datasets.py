"""Routes of datasets."""

from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from service.api import registration
from service.api.archive import ANSWERS, archive_response
from service.api.bodies import JsonRoute
from service.api.conditional import conditional_response
from service.api.deps import Reader, ServicesDep, Submitter, owned
from service.api.documents import ETAG, LINK, LOCATION, RETRY_AFTER, answers
from service.api.downloads import file_answers, file_response, find_file
from service.api.examples import DATASET_REQUESTS
from service.api.idempotency import Key
from service.api.paging import ListingDep, page_response
from service.api.resource_views import DatasetPage, DatasetView, dataset_view
from service.contract.records import DatasetRecord
from service.contract.specs import DatasetDeclaration

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], route_class=JsonRoute)


@router.post(
    "",
    status_code=201,
    response_model=DatasetView,
    responses=answers(
        {201: {"description": "Registered; a worker inspects it.", "headers": LOCATION}}, 400, 409, 413, 415
    ),
)
def register_dataset(
    services: ServicesDep,
    caller: Submitter,
    declaration: Annotated[DatasetDeclaration, Body(openapi_examples=DATASET_REQUESTS)],
    idempotency_key: Key = None,
) -> Response:
    """Make a dataset of uploaded files."""
    return registration.register(services, caller, declaration, idempotency_key)


@router.get("", response_model=DatasetPage, responses={200: {"headers": LINK}})
def list_datasets(request: Request, services: ServicesDep, caller: Reader, listing: ListingDep) -> Response:
    """List datasets, newest first."""
    with services.database.read() as session:
        rows, token = listing.page(session, DatasetRecord, caller.owner)
        files = registration.files_by_resource(session, [row.id for row in rows])
    page = DatasetPage(items=[dataset_view(row, files[row.id]) for row in rows], next_page_token=token)
    return page_response(request, page, token)


@router.get(
    "/{dataset_id}",
    response_model=DatasetView,
    responses=answers(
        {
            200: {"headers": ETAG | RETRY_AFTER},
            304: {"description": "The client has it already.", "headers": ETAG | RETRY_AFTER},
        },
        404,
    ),
)
def get_dataset(request: Request, services: ServicesDep, caller: Reader, dataset_id: str) -> Response:
    """Show a dataset: its state, what inspection found, or why it was rejected."""
    row, files = registration.load(services, caller, DatasetRecord, dataset_id)
    headers = {"Retry-After": "1"} if row.state == "inspecting" else {}
    return conditional_response(request, registration.shown(row, files), headers)


@router.delete("/{dataset_id}", status_code=204, responses=answers({204: {"description": "Gone."}}, 404, 409))
def delete_dataset(services: ServicesDep, caller: Submitter, dataset_id: str) -> Response:
    """Delete a dataset that no unfinished job uses."""
    registration.remove(services, caller, DatasetRecord, dataset_id)
    return Response(status_code=204)


@router.get("/{dataset_id}/files/{path}", response_class=Response, responses=file_answers())
@router.head("/{dataset_id}/files/{path}", response_class=Response, responses=file_answers())
def dataset_file(request: Request, services: ServicesDep, caller: Reader, dataset_id: str, path: str) -> Response:
    """Download a file of a dataset, or a range of it."""
    with services.database.read() as session:
        owned(session, DatasetRecord, dataset_id, caller)
        file = find_file(session, dataset_id, path)
    return file_response(request, services.storage, file, path)


@router.get("/{dataset_id}/archive", response_class=Response, responses=ANSWERS)
def dataset_archive(request: Request, services: ServicesDep, caller: Reader, dataset_id: str) -> Response:
    """Download all files of a dataset as one zip."""
    row, files = registration.load(services, caller, DatasetRecord, dataset_id)
    return archive_response(request, services.storage, row.id, files)
