"""Routes of jobs: submit, list, show, act, delete."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from service.api.bodies import Handler, JsonRoute
from service.api.deps import Reader, Services, ServicesDep, Submitter, owned
from service.api.documents import ETAG, LINK, LOCATION, RETRY_AFTER, answers, header, problems
from service.api.examples import JOB_REQUESTS
from service.api.idempotency import Answer, Key, body_digest, once
from service.api.job_views import JobPage, JobView, show
from service.api.long_poll import Prefer, wait_for_change
from service.api.paging import ListingDep, page_response
from service.api.submission import check_type, demand_reach, resolve
from service.contract import jobs
from service.contract.catalogue import Frozen
from service.contract.contents import release
from service.contract.errors import NotAvailable
from service.contract.job_spec import JobSpec
from service.contract.records import JobRecord, JobState
from service.keys import Caller


class JobRoute(JsonRoute):
    """Judges a job's type before its fields: those of an unknown type are beside the point."""

    def get_route_handler(self) -> Handler:
        """Return the handler."""
        handle = super().get_route_handler()

        async def judge_type_first(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                check_type(error.body)
                raise

        return judge_type_first


router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=JobRoute)


class Validation(BaseModel):
    """What would become of a job."""

    valid: bool = Field(description="Whether submitting it would be accepted.")
    resolved: dict[str, Any] = Field(description="The job with every default filled in.")
    reachable: bool | None = Field(
        description="Whether its target can be met; null where only a worker can tell: while inputs are inspected, "
        "for a latency, and with min_units, keep or round_to."
    )
    floor: dict[str, float] | None = Field(
        description="The least fraction of each cost that pruning can leave; null where that is not known."
    )
    pinned: list[str] = Field(description="What pruning would have to leave as it is.")
    warnings: list[str]


class CancelRequest(Frozen):
    """How to cancel."""

    keep: Literal["checkpoint"] | None = Field(None, description="Keep the last checkpoint's model; not available yet.")


@router.post(
    "",
    status_code=201,
    response_model=JobView,
    responses=answers(
        {
            200: {"description": "With `validate_only`: the job could be accepted.", "model": Validation},
            201: {"description": "Accepted.", "headers": LOCATION},
        },
        400,
        409,
        413,
        415,
    ),
)
def submit_job(
    services: ServicesDep,
    caller: Submitter,
    spec: Annotated[JobSpec, Body(openapi_examples=JOB_REQUESTS)],
    validate_only: Annotated[bool, Query(description="Only say whether the job could be accepted.")] = False,
    idempotency_key: Key = None,
) -> Response:
    """Submit a job, or only ask whether it could be accepted."""
    if validate_only:
        return _validate(services, caller, spec)
    with services.in_flight.hold(caller.owner, idempotency_key):
        ready = False
        with services.database.write() as session:

            def make() -> Answer:
                nonlocal ready
                answer, ready = _submit(services, session, caller, spec)
                return answer

            answer, _ = once(session, caller.owner, idempotency_key, body_digest("/v1/jobs", spec), make)
        if ready:
            services.doorbell.ring("jobs", answer.resource_id)
    return answer.response()


def _validate(services: Services, caller: Caller, spec: JobSpec) -> Response:
    with services.database.read() as session:
        resolved = resolve(session, caller, spec)
    body = Validation(
        valid=resolved.reach.obstacle is None,
        resolved=resolved.spec.model_dump(mode="json"),
        reachable=resolved.reach.reachable if resolved.settled else None,
        floor=resolved.reach.floor,
        pinned=list(resolved.reach.pinned),
        warnings=[*filter(None, [resolved.reach.obstacle]), *resolved.warnings],
    )
    return Response(body.model_dump_json(), media_type="application/json")


def _submit(services: Services, session: Session, caller: Caller, spec: JobSpec) -> tuple[Answer, bool]:
    """Insert the job; return the answer, and whether a worker may take it at once."""
    resolved = resolve(session, caller, spec)
    demand_reach(resolved)
    job = jobs.submit(session, caller.owner, resolved.spec, resolved.warnings)
    ready = job.state == JobState.QUEUED and job.waiting_for is None
    (body,) = show(session, [job], services.settings.lease_seconds)
    return Answer(201, {"Location": f"/v1/jobs/{job.id}"}, body.model_dump(mode="json"), job.id), ready


@router.get("", response_model=JobPage, responses={200: {"headers": LINK}})
def list_jobs(request: Request, services: ServicesDep, caller: Reader, listing: ListingDep) -> Response:
    """List jobs, newest first."""
    with services.database.read() as session:
        rows, token = listing.page(session, JobRecord, caller.owner)
        items = show(session, rows, services.settings.lease_seconds)
    return page_response(request, JobPage(items=items, next_page_token=token), token)


WAITED = {"Preference-Applied": header("`wait=N` when the answer waited as asked.", "wait=30")}


@router.get(
    "/{job_id}",
    response_model=JobView,
    responses=answers(
        {
            200: {"headers": ETAG | RETRY_AFTER | WAITED},
            304: {"description": "Nothing changed.", "headers": ETAG | RETRY_AFTER | WAITED},
        },
        404,
    ),
)
async def get_job(
    request: Request, services: ServicesDep, caller: Reader, job_id: str, prefer: Prefer = None
) -> Response:
    """Show a job; with `Prefer: wait=30` wait up to that long for it to change."""
    return await wait_for_change(request, services, caller, job_id, prefer or ())


@router.delete("/{job_id}", status_code=204, responses=answers({204: {"description": "Gone."}}, 404, 409))
def delete_job(services: ServicesDep, caller: Submitter, job_id: str) -> Response:
    """Delete a job that is done; the model that it made stays."""
    with services.database.write() as session:
        job = owned(session, JobRecord, job_id, caller, with_for_update=True)
        jobs.remove(session, job)
    release(services.database, services.storage, jobs.checkpoint_digests(job))
    return Response(status_code=204)


ACCEPTED = answers({202: {"description": "Accepted."}}, 404, 409)
Change = Callable[[Session, JobRecord], bool | None]


def _act(services: Services, caller: Caller, job_id: str, change: Change) -> Response:
    """Change a job, commit, and ring when a worker may take it now."""
    with services.database.write() as session:
        job = owned(session, JobRecord, job_id, caller, with_for_update=True)
        ready = change(session, job)
        session.refresh(job)
        (body,) = show(session, [job], services.settings.lease_seconds)
    if ready:
        services.doorbell.ring("jobs", job_id)
    return Response(body.model_dump_json(), 202, media_type="application/json")


@router.post("/{job_id}/cancel", status_code=202, response_model=JobView, responses=ACCEPTED | problems(400, 413, 415))
def cancel_job(services: ServicesDep, caller: Submitter, job_id: str, body: CancelRequest | None = None) -> Response:
    """Stop a job; asking again changes nothing."""
    if body is not None and body.keep is not None:
        with services.database.read() as session:
            owned(session, JobRecord, job_id, caller)
        raise NotAvailable("/keep: keeping a cancelled job's checkpoint comes with a later version; cancel without it")
    return _act(services, caller, job_id, jobs.cancel)


@router.post("/{job_id}/retry", status_code=202, response_model=JobView, responses=ACCEPTED)
def retry_job(services: ServicesDep, caller: Submitter, job_id: str) -> Response:
    """Queue a failed or cancelled job again, under the same id."""
    return _act(services, caller, job_id, jobs.retry)


@router.post("/{job_id}/pause", status_code=202, response_model=JobView, responses=ACCEPTED)
def pause_job(services: ServicesDep, caller: Submitter, job_id: str) -> Response:
    """Give the job's worker free, and keep what it has done; asking again changes nothing."""
    return _act(services, caller, job_id, jobs.pause)


@router.post("/{job_id}/resume", status_code=202, response_model=JobView, responses=ACCEPTED)
def resume_job(services: ServicesDep, caller: Submitter, job_id: str) -> Response:
    """Queue a paused job again; it goes on where it stood, bit for bit."""
    return _act(services, caller, job_id, jobs.resume)
