"""Jobs: their states, the legal transitions, and all SQL that changes one.

    queued --> preparing --> running --> succeeded | failed
      ^            |            |
      |            +------------+--> cancelling --> cancelled
      |            +------------+--> pausing --> paused --> queued
      +-- a lost lease, a drain, a retry of what failed or was cancelled

Every change is one conditional UPDATE, with the event that tells of it in the same transaction.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, delete, func, insert, null, select, update
from sqlalchemy.orm import Session

from service.contract.database import clock
from service.contract.errors import AttemptsExhausted, Conflict, DeadlineExceeded, Fault
from service.contract.ids import new_id
from service.contract.job_spec import JobSpec
from service.contract.leases import Claim, fenced_update, renew, take
from service.contract.records import (
    DatasetRecord,
    Event,
    JobInput,
    JobRecord,
    JobState,
    Metric,
    ModelRecord,
    ResourceState,
)
from service.contract.resources import find

S = JobState
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    S.QUEUED: frozenset({S.PREPARING, S.CANCELLED, S.FAILED, S.PAUSED}),
    S.PREPARING: frozenset({S.RUNNING, S.QUEUED, S.CANCELLING, S.PAUSING, S.FAILED}),
    S.RUNNING: frozenset({S.SUCCEEDED, S.FAILED, S.QUEUED, S.CANCELLING, S.PAUSING}),
    S.PAUSING: frozenset({S.PAUSED, S.CANCELLING, S.FAILED, S.SUCCEEDED}),
    S.PAUSED: frozenset({S.QUEUED, S.CANCELLED, S.FAILED}),
    S.CANCELLING: frozenset({S.CANCELLED, S.FAILED}),
    S.SUCCEEDED: frozenset(),
    S.FAILED: frozenset({S.QUEUED}),
    S.CANCELLED: frozenset({S.QUEUED}),
}
DONE = frozenset({S.SUCCEEDED, S.FAILED, S.CANCELLED})
UNFINISHED = frozenset(S) - DONE
HELD = frozenset({S.PREPARING, S.RUNNING, S.PAUSING, S.CANCELLING})  # a worker holds the job


def sources(target: JobState) -> list[JobState]:
    """Return the states from which `target` can be reached."""
    return [state for state, targets in TRANSITIONS.items() if target in targets]


def record_event(session: Session, job_id: str, kind: str, **data: Any) -> None:
    """Append an event; the caller has changed (and so locked) the job's row in this transaction."""
    session.execute(insert(Event).values(job_id=job_id, kind=kind, data=data))


def submit(session: Session, owner: str, spec: JobSpec, warnings: Sequence[str] = ()) -> JobRecord:
    """Insert a job. Its inputs exist and belong to `owner`; they may still be under inspection."""
    job = JobRecord(
        id=new_id("job"),
        owner=owner,
        type=spec.type,
        spec=spec.model_dump(mode="json"),
        labels=spec.labels,
        warnings=list(warnings),
        deadline_at=None if spec.deadline_seconds is None else clock() + spec.deadline_seconds,
    )
    session.add(job)
    session.flush()
    inputs = sorted({*spec.models, spec.dataset})
    session.add_all(JobInput(job_id=job.id, resource_id=resource_id) for resource_id in inputs)
    session.flush()
    record_event(session, job.id, "state", state=S.QUEUED)
    for warning in warnings:
        record_event(session, job.id, "warning", text=warning)
    settle_inputs(session, job.id)
    session.refresh(job)
    return job


def settle_inputs(session: Session, job_id: str) -> bool:
    """Look whether a queued job's inputs are there; return whether a worker may take it now.

    A job whose input was rejected fails with that input's error.
    """
    inputs = session.scalars(select(JobInput.resource_id).where(JobInput.job_id == job_id)).all()
    pending = None
    for resource_id in sorted(inputs):
        resource = find(session, resource_id, lock=True)
        if resource is None or resource.state == ResourceState.REJECTED:
            _fail_input(session, job_id, resource_id, resource)
            return False
        if resource.state == ResourceState.INSPECTING:
            pending = resource_id
    reason = f"waits for the inspection of {pending}" if pending else None
    changed = _update(session, job_id, [S.QUEUED], waiting_for=pending, reason=reason)
    return changed and pending is None


def _fail_input(session: Session, job_id: str, resource_id: str, resource: ModelRecord | DatasetRecord | None) -> None:
    if resource is not None and resource.error is not None:
        fault = Fault.model_validate(resource.error)
        fault = fault.model_copy(update={"detail": f"{resource_id} was rejected: {fault.detail}"})
    else:
        fault = Conflict(f"{resource_id} was deleted before the job could start").fault()
    _end(session, job_id, S.FAILED, [S.QUEUED], error=fault)


def jobs_waiting_for(session: Session, resource_id: str) -> Sequence[str]:
    """Return the queued jobs that read a resource and wait for an inspection."""
    return session.scalars(
        select(JobRecord.id)
        .join(JobInput)
        .where(
            JobInput.resource_id == resource_id,
            JobRecord.state == S.QUEUED,
            JobRecord.waiting_for.is_not(None),
        )
        .order_by(JobRecord.id)  # two inspections that end at once lock the jobs in one order
    ).all()


def _update(session: Session, job_id: str, states: Sequence[JobState], *conditions: Any, **values: Any) -> bool:
    statement = update(JobRecord).where(JobRecord.id == job_id, JobRecord.state.in_(states), *conditions)
    result = session.execute(statement.values(**values).execution_options(synchronize_session=False))
    return bool(result.rowcount)  # type: ignore[attr-defined]  # an UPDATE's result has it


def _end(
    session: Session, job_id: str, state: JobState, states: Sequence[JobState], *conditions: Any,
    error: Fault | None = None, **values: Any,
) -> bool:  # fmt: skip
    """End a job that no worker holds (any more); raise the epoch, so that a late worker finds out."""
    document = None if error is None else error.model_dump(mode="json")
    changed = _update(
        session, job_id, states, *conditions, state=state, error=document, finished_at=clock(), lease_until=None,
        reason=None, waiting_for=None, epoch=JobRecord.epoch + 1, **values,
    )  # fmt: skip
    if changed:
        record_event(session, job_id, "state", state=state, error=document)
    return changed


# What a worker does ------------------------------------------------------------------------------


def claim(session: Session, job_id: str, worker: str, lease_seconds: float) -> Claim | None:
    """Take a queued job whose inputs are there. None when there is nothing to take."""
    wanted = Claim(JobRecord, job_id, 0, worker, lease_seconds)
    taken = take(
        session, wanted, JobRecord.state == S.QUEUED, JobRecord.waiting_for.is_(None),
        state=S.PREPARING, reason=None, started_at=func.coalesce(JobRecord.started_at, clock()),
    )  # fmt: skip
    if taken is not None:
        record_event(session, job_id, "state", state=S.PREPARING, worker=worker, epoch=taken.epoch)
    return taken


def oldest_queued() -> Select[str]:
    """The jobs that a worker may take, oldest first."""
    ready = select(JobRecord.id).where(JobRecord.state == S.QUEUED, JobRecord.waiting_for.is_(None))
    return ready.order_by(JobRecord.queued_at, JobRecord.id)


def heartbeat(session: Session, held: Claim) -> tuple[JobState, bool]:
    """Renew the lease; return what state the job is in now, and whether its deadline has passed."""
    renew(session, held)
    row = session.execute(select(JobRecord.state, JobRecord.deadline_at < clock()).where(JobRecord.id == held.id)).one()
    return JobState(row[0]), bool(row[1])


def start(session: Session, held: Claim) -> None:
    """The inputs are read: the job runs. A job that was asked to stop meanwhile, or was lost, stays as it is."""
    holds = (JobRecord.epoch == held.epoch, JobRecord.lease_until >= clock())
    if _update(session, held.id, [S.PREPARING], *holds, state=S.RUNNING):
        record_event(session, held.id, "state", state=S.RUNNING)


def report_stage(session: Session, held: Claim, name: str, index: int, total: int) -> None:
    """A stage of the pipeline begins, and its progress with it."""
    stage = {"name": name, "index": index, "total": total}
    at = session.scalar(select(clock()))
    progress = {"fraction": 0.0, "step": 0, "total_steps": None, "eta_seconds": None, "updated_at": at}
    fenced_update(session, held, stage=stage, progress=progress)
    record_event(session, held.id, "stage", **stage)


def report_progress(session: Session, held: Claim, progress: Mapping[str, Any]) -> None:
    """How far the job is: fraction, step, total_steps, eta_seconds."""
    at = session.scalar(select(clock()))
    fenced_update(session, held, progress={**progress, "updated_at": at})


def report_event(session: Session, held: Claim, kind: str, data: Mapping[str, Any]) -> None:
    """Something to tell: a warning, a line of the log."""
    fenced_update(session, held, epoch=held.epoch)  # holds the row's lock, so that events keep their order
    record_event(session, held.id, kind, **data)


def report_metrics(session: Session, held: Claim, step: int, values: Mapping[str, float | None]) -> None:
    """Points of series at a step; a repeated step (after a resume) replaces what was there."""
    fenced_update(session, held, epoch=held.epoch)
    session.execute(delete(Metric).where(Metric.job_id == held.id, Metric.step == step, Metric.name.in_(list(values))))
    rows = [{"job_id": held.id, "name": name, "step": step, "value": value} for name, value in values.items()]
    session.execute(insert(Metric), rows)


def report_checkpoint(session: Session, held: Claim, checkpoint: Mapping[str, Any]) -> None:
    """From here a later attempt resumes: {sha256, size, step}."""
    fenced_update(session, held, checkpoint=dict(checkpoint))
    record_event(session, held.id, "checkpoint", step=checkpoint["step"], sha256=checkpoint["sha256"])


def checkpoint_digests(job: JobRecord) -> list[str]:
    """Return what a job's checkpoint, and the one before it, are stored under."""
    return [] if job.checkpoint is None else [job.checkpoint["sha256"], *_previous_digest(job.checkpoint)]


def _previous_digest(checkpoint: Mapping[str, Any]) -> list[str]:
    previous = checkpoint.get("previous")
    return [] if previous is None else [previous["sha256"]]


def publish(session: Session, held: Claim, model_id: str | None, report: Mapping[str, Any]) -> None:
    """The result counts from here: a report, and a model where the job made one.

    Raises LeaseLost, and then nothing of it stays.
    """
    running = JobRecord.state.in_([S.RUNNING, S.PAUSING])
    fenced_update(
        session, held, running, state=S.SUCCEEDED, result_model_id=model_id, report=dict(report), error=None,
        finished_at=clock(), lease_until=None, reason=None, checkpoint=null(),
        progress={"fraction": 1.0, "step": None, "total_steps": None, "eta_seconds": 0.0, "updated_at": None},
    )  # fmt: skip
    record_event(session, held.id, "state", state=S.SUCCEEDED, model_id=model_id)


def fail(session: Session, held: Claim, fault: Fault) -> None:
    """The job ends with an error. Raises LeaseLost."""
    document = fault.model_dump(mode="json")
    fenced_update(session, held, state=S.FAILED, error=document, finished_at=clock(), lease_until=None, reason=None)
    record_event(session, held.id, "state", state=S.FAILED, error=document)


def confirm_stop(session: Session, held: Claim) -> None:
    """The worker has stopped, as the job's owner asked. Raises LeaseLost where nobody asked."""
    fenced_update(session, held, JobRecord.state.in_([S.CANCELLING, S.PAUSING]), lease_until=None)
    _stop_as_asked(session, held.id, JobRecord.epoch == held.epoch, reason=None)


def _stop_as_asked(session: Session, job_id: str, *conditions: Any, reason: str | None, **values: Any) -> bool:
    """Cancel or pause a job that was asked to, and that no worker holds any more."""
    if _update(
        session, job_id, [S.CANCELLING], *conditions, state=S.CANCELLED, finished_at=clock(), lease_until=None,
        reason=None, **values,
    ):  # fmt: skip
        record_event(session, job_id, "state", state=S.CANCELLED, reason=reason)
        return True
    if _update(
        session, job_id, [S.PAUSING], *conditions, state=S.PAUSED, lease_until=None, worker=None, reason=None, **values
    ):
        record_event(session, job_id, "state", state=S.PAUSED, reason=reason)
        return True
    return False


def hand_back(session: Session, held: Claim, reason: str) -> None:
    """A worker that must leave returns the job to the queue; no attempt is used up. Raises LeaseLost."""
    condition = JobRecord.state.in_([S.PREPARING, S.RUNNING])
    fenced_update(session, held, condition, state=S.QUEUED, lease_until=None, worker=None, reason=reason)
    record_event(session, held.id, "state", state=S.QUEUED, reason=reason)


def give_up(session: Session, held: Claim, reason: str, max_attempts: int) -> None:
    """The job's process died: back to the queue, or to `failed` when that happened too often. Raises LeaseLost."""
    fenced_update(session, held, lease_until=None)
    _requeue_or_fail(session, held.id, held.epoch, reason, max_attempts)


def _requeue_or_fail(session: Session, job_id: str, epoch: int, reason: str, max_attempts: int) -> None:
    same = JobRecord.epoch == epoch
    if _stop_as_asked(session, job_id, same, reason=reason, epoch=epoch + 1):
        return
    fault = AttemptsExhausted(f"{reason}; tried {max_attempts} times. The job's logs tell more.").fault()
    if _end(session, job_id, S.FAILED, list(HELD), same, JobRecord.losses + 1 >= max_attempts, error=fault,
            losses=JobRecord.losses + 1):  # fmt: skip
        return
    if _update(session, job_id, list(HELD), same, state=S.QUEUED, losses=JobRecord.losses + 1, worker=None,
               lease_until=None, epoch=epoch + 1, attempt=JobRecord.attempt + 1, reason=reason):  # fmt: skip
        record_event(session, job_id, "state", state=S.QUEUED, reason=reason)


# What a user asks for ----------------------------------------------------------------------------


def cancel(session: Session, job: JobRecord) -> None:
    """Ask a job to stop; asking again changes nothing. Raises Conflict when it already ended otherwise."""
    if _end(session, job.id, S.CANCELLED, [S.QUEUED, S.PAUSED]):
        return
    if _update(session, job.id, sources(S.CANCELLING), state=S.CANCELLING):
        record_event(session, job.id, "state", state=S.CANCELLING)
        return
    state = session.scalar(select(JobRecord.state).where(JobRecord.id == job.id))
    if state not in {S.CANCELLING, S.CANCELLED}:
        raise Conflict(f"the job is {state}; only a job that has not ended can be cancelled")


def pause(session: Session, job: JobRecord) -> None:
    """Ask a job to give its worker free and keep its checkpoint; asking again changes nothing. Raises Conflict."""
    if _update(session, job.id, [S.QUEUED], state=S.PAUSED, reason=None, waiting_for=None):
        record_event(session, job.id, "state", state=S.PAUSED)
        return
    if _update(session, job.id, [S.PREPARING, S.RUNNING], state=S.PAUSING):
        record_event(session, job.id, "state", state=S.PAUSING)
        return
    state = session.scalar(select(JobRecord.state).where(JobRecord.id == job.id))
    if state not in {S.PAUSING, S.PAUSED}:
        raise Conflict(f"the job is {state}; only a queued or running job can be paused")


def resume(session: Session, job: JobRecord) -> bool:
    """Queue a paused job again, in its old place; return whether a worker may take it now. Raises Conflict."""
    if _update(session, job.id, [S.PAUSED], state=S.QUEUED, reason=None):
        record_event(session, job.id, "state", state=S.QUEUED, reason="resumed")
        return settle_inputs(session, job.id)
    state = session.scalar(select(JobRecord.state).where(JobRecord.id == job.id))
    if state == S.PAUSING:
        raise Conflict("the job is still pausing; resume it when it is paused, in a few seconds")
    if state in DONE or state == S.CANCELLING:
        raise Conflict(f"the job is {state}; only a paused job can be resumed")
    return False


def retry(session: Session, job: JobRecord) -> bool:
    """Queue a failed or cancelled job again; return whether a worker may take it now."""
    if _update(
        session, job.id, [S.FAILED, S.CANCELLED], state=S.QUEUED, error=None, reason=None, finished_at=None,
        attempt=JobRecord.attempt + 1, losses=0, queued_at=clock(), started_at=None, stage=None, progress=None,
        worker=None, epoch=JobRecord.epoch + 1,
        deadline_at=JobRecord.deadline_at - JobRecord.queued_at + clock(),
    ):  # fmt: skip
        record_event(session, job.id, "state", state=S.QUEUED, reason="retry")
        return settle_inputs(session, job.id)
    state = session.scalar(select(JobRecord.state).where(JobRecord.id == job.id))
    raise Conflict(f"the job is {state}; only a failed or cancelled job can be tried again")


def remove(session: Session, job: JobRecord) -> None:
    """Delete a job that is done; the model that it made stays."""
    gone = session.execute(delete(JobRecord).where(JobRecord.id == job.id, JobRecord.state.in_(list(DONE))))
    if not gone.rowcount:  # type: ignore[attr-defined]  # a DELETE's result has it
        raise Conflict("the job is not done; cancel it first, or wait until it is done")


# What the sweep does -----------------------------------------------------------------------------


def sweep(session: Session, max_attempts: int) -> list[str]:
    """Requeue jobs whose lease ran out, end those past their deadline; return what a worker may take."""
    expired = select(JobRecord.id, JobRecord.epoch, JobRecord.worker).where(
        JobRecord.state.in_(list(HELD)), JobRecord.lease_until < clock()
    )
    for job_id, epoch, worker in session.execute(expired).all():
        _requeue_or_fail(session, job_id, epoch, f"the worker {worker} stopped answering", max_attempts)
    idle = [S.QUEUED, S.PAUSED]
    late = select(JobRecord.id, JobRecord.state).where(JobRecord.state.in_(idle), JobRecord.deadline_at < clock())
    for job_id, state in session.execute(late).all():
        doing = "waited for a worker" if state == S.QUEUED else "was paused"
        fault = DeadlineExceeded(f"the deadline passed while the job {doing}").fault()
        _end(session, job_id, S.FAILED, idle, error=fault)
    waiting = select(JobRecord.id).where(JobRecord.state == S.QUEUED, JobRecord.waiting_for.is_not(None))
    for job_id in session.scalars(waiting.order_by(JobRecord.id)).all():
        settle_inputs(session, job_id)
    return list(session.scalars(oldest_queued()))
