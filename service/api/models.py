"""Routes of models."""

from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from service.api import registration
from service.api.archive import ANSWERS, archive_response
from service.api.bodies import JsonRoute
from service.api.conditional import conditional_response
from service.api.deps import Reader, ServicesDep, Submitter, owned
from service.api.documents import ETAG, LINK, LOCATION, RETRY_AFTER, answers
from service.api.downloads import file_answers, file_response, find_file
from service.api.examples import MODEL_REQUESTS
from service.api.idempotency import Key
from service.api.paging import ListingDep, page_response
from service.api.resource_views import ModelPage, ModelView, listed_model_view
from service.contract.records import ModelRecord
from service.contract.specs import ModelDeclaration

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=JsonRoute)


@router.post(
    "",
    status_code=201,
    response_model=ModelView,
    responses=answers(
        {201: {"description": "Registered; a worker inspects it.", "headers": LOCATION}}, 400, 409, 413, 415
    ),
)
def register_model(
    services: ServicesDep,
    caller: Submitter,
    declaration: Annotated[ModelDeclaration, Body(openapi_examples=MODEL_REQUESTS)],
    idempotency_key: Key = None,
) -> Response:
    """Make a model of uploaded files."""
    return registration.register(services, caller, declaration, idempotency_key)


@router.get("", response_model=ModelPage, responses={200: {"headers": LINK}})
def list_models(request: Request, services: ServicesDep, caller: Reader, listing: ListingDep) -> Response:
    """List models, newest first."""
    with services.database.read() as session:
        rows, token = listing.page(session, ModelRecord, caller.owner)
        files = registration.files_by_resource(session, [row.id for row in rows])
    page = ModelPage(items=[listed_model_view(row, files[row.id]) for row in rows], next_page_token=token)
    return page_response(request, page, token)


@router.get(
    "/{model_id}",
    response_model=ModelView,
    responses=answers(
        {
            200: {"headers": ETAG | RETRY_AFTER},
            304: {"description": "The client has it already.", "headers": ETAG | RETRY_AFTER},
        },
        404,
    ),
)
def get_model(request: Request, services: ServicesDep, caller: Reader, model_id: str) -> Response:
    """Show a model: its state, what inspection found, or why it was rejected."""
    row, files = registration.load(services, caller, ModelRecord, model_id)
    headers = {"Retry-After": "1"} if row.state == "inspecting" else {}
    return conditional_response(request, registration.shown(row, files), headers)


@router.delete("/{model_id}", status_code=204, responses=answers({204: {"description": "Gone."}}, 404, 409))
def delete_model(services: ServicesDep, caller: Submitter, model_id: str) -> Response:
    """Delete a model that no unfinished job uses."""
    registration.remove(services, caller, ModelRecord, model_id)
    return Response(status_code=204)


@router.get("/{model_id}/files/{path}", response_class=Response, responses=file_answers())
@router.head("/{model_id}/files/{path}", response_class=Response, responses=file_answers())
def model_file(request: Request, services: ServicesDep, caller: Reader, model_id: str, path: str) -> Response:
    """Download a file of a model, or a range of it."""
    with services.database.read() as session:
        owned(session, ModelRecord, model_id, caller)
        file = find_file(session, model_id, path)
    return file_response(request, services.storage, file, path)


@router.get("/{model_id}/archive", response_class=Response, responses=ANSWERS)
def model_archive(request: Request, services: ServicesDep, caller: Reader, model_id: str) -> Response:
    """Download all files of a model as one zip."""
    row, files = registration.load(services, caller, ModelRecord, model_id)
    return archive_response(request, services.storage, row.id, files)
