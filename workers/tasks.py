"""What a message sets going: run a job, or inspect a model or dataset.

The message is a doorbell. The task claims the row that it names or, if that has been taken, the one
that has waited longest. Nothing that happens here is raised to Celery.
"""

import time
from collections.abc import Sequence

from structlog import get_logger
from structlog.contextvars import bound_contextvars

from service.contract import jobs, leases, resources
from service.contract.errors import InputRejected, LeaseLost, NotFound, Unavailable
from service.contract.leases import Claim
from service.contract.records import DatasetRecord, JobRecord, ModelRecord
from workers import reader
from workers.station import Station
from workers.supervisor import supervise
from workers.tenure import Tenure

MAX_CANDIDATES = 16
log = get_logger(__name__)


# Jobs --------------------------------------------------------------------------------------------


def run_job(station: Station, job_id: str) -> None:
    """Carry jobs to their ends, this one first, until none waits: Celery fetches its next message only later."""
    while _run_one(station, job_id):
        pass


def _run_one(station: Station, job_id: str) -> bool:
    """Claim a job and carry it to its end; return whether there was one to claim."""
    since = time.monotonic()
    try:
        claimed = None if station.draining.is_set() else _claim_job(station, job_id)
    except Unavailable as error:
        log.warning("could not claim a job", error=error.detail)
        return False
    if claimed is None:
        return False
    station.job_id = claimed[0].id
    try:
        supervise(station, *claimed, since)
    except Exception:
        log.exception("a job was left to the sweep", job=claimed[0].id)
    finally:
        station.job_id = None
    return True


def _claim_job(station: Station, job_id: str) -> tuple[Claim, JobRecord] | None:
    with station.database.read() as session:
        waiting = session.scalars(jobs.oldest_queued().limit(MAX_CANDIDATES)).all()
    for candidate in _first(job_id, waiting):
        with station.database.write() as session:
            held = jobs.claim(session, candidate, station.worker, station.settings.lease_seconds)
            if held is not None:
                return held, session.get_one(JobRecord, held.id)
    return None


def _first(named: str, waiting: Sequence[str]) -> list[str]:
    """Put the row that the message names before the older ones; what does not wait is not asked for.

    Candidates are read before the one writer's place is taken, so that an idle worker never holds it.
    """
    return sorted(waiting, key=lambda candidate: candidate != named)


# Inspections -------------------------------------------------------------------------------------


class Draining(Exception):
    """The worker is leaving."""


def inspect(station: Station, resource_id: str) -> None:
    """Inspect models and datasets, this one first, until none waits."""
    while _inspect_one(station, resource_id):
        pass


def _inspect_one(station: Station, resource_id: str) -> bool:
    """Claim a model or dataset, read it, record what was found, and wake the jobs that wait for it."""
    since = time.monotonic()
    try:
        claimed = None if station.draining.is_set() else _claim_inspection(station, resource_id)
    except Unavailable as error:
        log.warning("could not claim an inspection", error=error.detail)
        return False
    if claimed is None:
        return False
    held, row = claimed
    with bound_contextvars(resource=held.id, attempt=row.attempt, epoch=held.epoch):
        try:
            _inspect(station, held, row, since)
        except LeaseLost:
            log.warning("the lease was lost; this worker leaves the inspection alone")
        except Unavailable as error:
            log.warning("the inspection is left to the sweep", error=error.detail)
        except Exception:
            log.exception("the inspection is left to the sweep")
    return True


def _claim_inspection(station: Station, resource_id: str) -> tuple[Claim, ModelRecord | DatasetRecord] | None:
    with station.database.read() as session:
        waiting = resources.waiting_inspections(session, MAX_CANDIDATES)
    for candidate in _first(resource_id, waiting):
        with station.database.write() as session:
            held = resources.claim_inspection(session, candidate, station.worker, station.settings.lease_seconds)
            if held is not None:
                row = resources.find(session, held.id)
                assert row is not None  # noqa: S101  it has just been claimed, in this transaction
                return held, row
    return None


def _inspect(station: Station, held: Claim, row: ModelRecord | DatasetRecord, since: float) -> None:
    log.info("inspection claimed", name=row.name)
    with Tenure(station.database, held, leases.renew, station.settings.heartbeat_seconds, since) as tenure:
        try:
            _judge(station, tenure, row)
        except Draining:
            tenure.write(lambda session: resources.hand_back_inspection(session, held))
            station.ring("inspections", held.id)
            return
    _wake(station, held.id)


def _judge(station: Station, tenure: Tenure[None], row: ModelRecord | DatasetRecord) -> None:
    held = tenure.claim

    def check() -> None:
        if tenure.lost:
            raise LeaseLost(f"{held.id}: the lease ran out, or was given to another")
        if station.draining.is_set():
            raise Draining

    with station.database.read() as session:
        files = resources.files_of(session, held.id)
    kind: reader.Kind = "model" if held.record is ModelRecord else "dataset"
    try:
        _, facts = reader.canonical(station.storage, station.settings, kind, row.declaration, files, check=check)
    except (InputRejected, NotFound) as error:
        fault = error.fault()
        tenure.write(lambda session: resources.reject(session, held, fault))
        log.info("rejected", code=fault.code, detail=fault.detail)
    else:
        tenure.write(lambda session: resources.accept(session, held, facts))
        log.info("accepted")


def _wake(station: Station, resource_id: str) -> None:
    """Let the jobs that waited for this inspection start, or fail."""
    with station.database.write() as session:
        waiting = jobs.jobs_waiting_for(session, resource_id)
        ready = [job_id for job_id in waiting if jobs.settle_inputs(session, job_id)]
    for job_id in ready:
        station.ring("jobs", job_id)
