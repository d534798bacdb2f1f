"""A job's way through a worker, and what breaks on it."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from service.contract import resources
from service.contract.records import JobState, ModelRecord, ResourceState
from tests.integration.worker_stack import (
    LEASE_SECONDS,
    LONG,
    SHORT,
    SOME,
    SWEEP_SECONDS,
    Process,
    Stack,
    Worker,
    all_dead,
    running_stack,
    until,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as stack:
        yield stack


@pytest.fixture(scope="module")
def inputs(stack: Stack) -> tuple[str, str]:
    """A teacher and a dataset that a worker has inspected."""
    inspector = stack.start("inspections")
    found = stack.teacher(), stack.digits()
    for resource_id in found:
        row = stack.inspected(resource_id)
        assert row.state == ResourceState.READY, (row.error, inspector.log)
    assert inspector.end() == 0
    return found


@pytest.fixture
def worker(stack: Stack, inputs: tuple[str, str]) -> Iterator[Worker]:
    yield stack.worker()
    stack.tidy_up()


def next_child(worker: Worker, seen: set[int]) -> Process | None:
    child = worker.child()
    return None if child is None or child.pid in seen else child


def num_results(stack: Stack, job_id: str) -> int:
    with stack.database.read() as session:
        made = select(func.count()).select_from(ModelRecord).where(ModelRecord.lineage_job_id == job_id)
        return session.scalar(made) or 0


def test_a_job_is_claimed_run_and_published(stack: Stack, inputs: tuple[str, str], worker: Worker) -> None:
    job_id = stack.submit(*inputs, SHORT)
    job = stack.wait_for(job_id, JobState.SUCCEEDED)
    assert stack.states(job_id) == ["queued", "preparing", "running", "succeeded"]
    assert job.report
    assert job.result_model_id
    assert stack.steps(job_id) == [1, 2]
    result = stack.resource(job.result_model_id)
    assert result.state == ResourceState.READY
    assert result.lineage_job_id == job_id
    with stack.database.read() as session:
        files = resources.files_of(session, result.id)
    assert "model.safetensors" in files
    assert all(stack.storage.size(file.sha256) == file.size for file in files.values())
    until(lambda: list(stack.settings.jobs_dir.iterdir()) == [], what="the removal of the job's folder")
    assert job.checkpoint is None
    checkpoints = {event["sha256"] for event in stack.events(job_id, "checkpoint")}
    until(lambda: not any(stack.storage.path(digest).exists() for digest in checkpoints), what="the checkpoints' end")
    until(lambda: stack.seen()[worker.pid].job_id is None, what="the worker to say that it is free")
    assert f"job={job_id}" in worker.log
    assert "attempt=1" in worker.log
    assert "epoch=1" in worker.log


def test_a_job_runs_a_fraction_of_a_second_after_its_submission(
    stack: Stack, inputs: tuple[str, str], worker: Worker
) -> None:
    job_id = stack.submit(*inputs, LONG)
    submitted = time.monotonic()
    stack.wait_for(job_id, JobState.RUNNING)
    seconds = time.monotonic() - submitted
    print(f"\nsubmit to running: {seconds:.3f} s")  # noqa: T201  a measurement, shown by -s
    stack.cancel(job_id)
    stack.wait_for(job_id, JobState.CANCELLED)
    assert seconds < 2.0


def test_the_celery_process_never_imports_torch_and_its_children_never_import_celery(
    stack: Stack, inputs: tuple[str, str], worker: Worker
) -> None:
    job_id = stack.submit(*inputs, LONG)
    stack.wait_for_training(job_id)
    child = worker.child()
    assert child is not None

    def maps(pid: int) -> str:
        return Path(f"/proc/{pid}/maps").read_text()

    assert "libtorch" not in maps(worker.pid)
    assert "libtorch" in maps(child.pid)
    assert "celery" not in maps(child.pid)
    stack.cancel(job_id)
    stack.wait_for(job_id, JobState.CANCELLED)


def test_a_cancelled_job_frees_its_worker_within_seconds(stack: Stack, inputs: tuple[str, str], worker: Worker) -> None:
    job_id = stack.submit(*inputs, LONG)
    stack.wait_for_training(job_id)
    child = worker.child()
    assert child is not None
    stack.cancel(job_id)
    asked = time.monotonic()
    stack.wait_for(job_id, JobState.CANCELLED, seconds=10)
    assert not child.alive()
    print(f"\ncancel to free: {time.monotonic() - asked:.2f} s")  # noqa: T201  a measurement, shown by -s
    assert num_results(stack, job_id) == 0
    following = stack.submit(*inputs, LONG)
    stack.wait_for(following, JobState.RUNNING)
    stack.cancel(following)
    stack.wait_for(following, JobState.CANCELLED)


def test_a_job_past_its_deadline_fails(stack: Stack, inputs: tuple[str, str], worker: Worker) -> None:
    job_id = stack.submit(*inputs, LONG, deadline_seconds=1.5)
    job = stack.wait_for(job_id, JobState.FAILED, seconds=10)
    assert job.error is not None
    assert job.error["code"] == "deadline_exceeded"


def test_a_killed_child_is_tried_again_from_its_checkpoint(
    stack: Stack, inputs: tuple[str, str], worker: Worker
) -> None:
    job_id = stack.submit(*inputs, 300)
    until(lambda: stack.job(job_id).checkpoint, what="a checkpoint")
    child = worker.child()
    assert child is not None
    _kill(child.pid)
    job = stack.wait_for(job_id, JobState.SUCCEEDED)
    assert (job.attempt, job.losses) == (2, 1)
    assert num_results(stack, job_id) == 1
    requeued = next(event for event in stack.events(job_id)[1:] if event["state"] == "queued")
    assert "SIGKILL" in requeued["reason"]
    resumed = stack.events(job_id, "checkpoint")
    assert [event["step"] for event in resumed] == sorted({event["step"] for event in resumed}), "no step is redone"


def test_a_job_that_kills_its_process_again_and_again_fails_with_the_reason(
    stack: Stack, inputs: tuple[str, str], worker: Worker
) -> None:
    job_id = stack.submit(*inputs, LONG)
    killed: set[int] = set()
    for _ in range(stack.settings.max_attempts):
        child = until(lambda: next_child(worker, killed), what="a child")
        killed.add(child.pid)
        _kill(child.pid, signal.SIGSEGV)
    job = stack.wait_for(job_id, JobState.FAILED)
    assert job.error is not None
    assert job.error["code"] == "attempts_exhausted"
    assert "SIGSEGV" in job.error["detail"]


def test_a_killed_celery_process_leaves_no_orphan_and_another_worker_finishes_its_job(
    stack: Stack, inputs: tuple[str, str], worker: Worker
) -> None:
    stack.worker(1)
    job_id = stack.submit(*inputs, 300)
    stack.wait_for_training(job_id)
    worker = stack.holder(job_id)
    family, child = worker.family(), worker.child()
    assert child is not None
    worker.end(signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: not child.alive(), LEASE_SECONDS, "the end of the job's child")
    print(f"\nkill to dead child: {time.monotonic() - killed:.2f} s")  # noqa: T201  a measurement, shown by -s
    until(lambda: stack.job(job_id).epoch > 2 and stack.job(job_id).state == JobState.RUNNING, what="the takeover")
    seconds = time.monotonic() - killed
    print(f"\nkill to running again: {seconds:.2f} s (lease {LEASE_SECONDS} s, sweep {SWEEP_SECONDS} s)")  # noqa: T201  a measurement, shown by -s
    assert seconds < LEASE_SECONDS + SWEEP_SECONDS * 1.2 + 3.0
    until(lambda: all_dead(family), what="the end of the fork server, which takes torch's good time to leave")
    job = stack.wait_for(job_id, JobState.SUCCEEDED)
    assert job.losses == 1
    assert num_results(stack, job_id) == 1


def test_sigterm_drains_and_hands_the_job_back(stack: Stack, inputs: tuple[str, str], worker: Worker) -> None:
    job_id = stack.submit(*inputs, LONG)
    before = stack.wait_for_training(job_id, step=3)
    family = worker.family()
    assert worker.end(signal.SIGTERM) == 0
    job = stack.job(job_id)
    assert job.state == JobState.QUEUED, worker.log
    assert (job.attempt, job.losses) == (1, 0), "a drain uses up no attempt"
    assert job.checkpoint is not None
    assert job.checkpoint["step"] >= before
    until(lambda: all_dead(family), what="the end of the whole family")
    assert worker.pid not in stack.seen(), "a worker that leaves in order takes its row away"
    stack.worker()
    until(lambda: stack.job(job_id).epoch == 2, what="another claim")
    stack.wait_for(job_id, JobState.RUNNING)
    stack.cancel(job_id)
    stack.wait_for(job_id, JobState.CANCELLED)


def test_a_paused_job_gives_its_slot_away_and_resumes_bit_for_bit(
    stack: Stack, inputs: tuple[str, str], worker: Worker
) -> None:
    plain = stack.submit(*inputs, SOME)
    stack.wait_for(plain, JobState.SUCCEEDED, seconds=180)
    job_id = stack.submit(*inputs, SOME)
    before = stack.wait_for_training(job_id, step=2)
    stack.pause(job_id)
    paused = stack.wait_for(job_id, JobState.PAUSED, seconds=10)
    assert paused.checkpoint is not None
    assert paused.worker is None
    other = stack.submit(*inputs, SHORT)
    stack.wait_for(other, JobState.SUCCEEDED)
    assert stack.job(job_id).state == JobState.PAUSED
    stack.resume(job_id)
    job = stack.wait_for(job_id, JobState.SUCCEEDED, seconds=180)
    assert (job.attempt, job.losses) == (1, 0)
    assert len(stack.steps(job_id)) >= before
    assert stack.weights(job_id) == stack.weights(plain)


def test_a_group_wide_sigterm_drains_too(stack: Stack, inputs: tuple[str, str], worker: Worker) -> None:
    job_id = stack.submit(*inputs, LONG)
    stack.wait_for_training(job_id)
    for process in worker.family():
        _kill(process.pid, signal.SIGTERM)
    assert worker.end(signal.SIGTERM) == 0
    job = stack.job(job_id)
    assert (job.state, job.losses) == (JobState.QUEUED, 0), (job.reason, worker.log)
    stack.cancel(job_id)


def test_a_worker_frozen_past_its_lease_publishes_nothing(
    stack: Stack, inputs: tuple[str, str], worker: Worker
) -> None:
    stack.worker(1)
    job_id = stack.submit(*inputs, LONG)
    stack.wait_for_training(job_id)
    worker = stack.holder(job_id)
    child = worker.child()
    assert child is not None
    stack.freeze(worker)
    frozen = time.monotonic()
    until(lambda: not child.alive(), seconds=LEASE_SECONDS + 1, what="the frozen worker's child to end by itself")
    print(f"\nfreeze to dead child: {time.monotonic() - frozen:.2f} s (lease {LEASE_SECONDS} s)")  # noqa: T201  a measurement, shown by -s
    until(lambda: stack.job(job_id).epoch >= 2 and stack.job(job_id).state == JobState.RUNNING, what="another claim")
    other = stack.holder(job_id)
    assert other is not worker
    worker.send(signal.SIGCONT)
    until(lambda: "lease was lost" in worker.log, what="the thawed worker to notice")
    stack.cancel(job_id)
    stack.wait_for(job_id, JobState.CANCELLED)
    assert stack.holder(job_id) is other
    assert num_results(stack, job_id) == 0


def test_repeated_and_foreign_messages_are_harmless(stack: Stack, inputs: tuple[str, str], worker: Worker) -> None:
    job_id = stack.submit(*inputs, SHORT)
    for _ in range(5):
        stack.ring(job_id)
    stack.ring("job_" + 26 * "0")
    job = stack.wait_for(job_id, JobState.SUCCEEDED)
    assert job.epoch == 1
    for _ in range(5):
        stack.ring(job_id)
    following = stack.submit(*inputs, LONG)
    stack.wait_for(following, JobState.RUNNING)
    stack.cancel(following)
    stack.wait_for(following, JobState.CANCELLED)
    assert num_results(stack, job_id) == 1
    assert stack.states(job_id).count("preparing") == 1


def test_a_lost_message_is_rung_again(stack: Stack, inputs: tuple[str, str], worker: Worker) -> None:
    stack.flush()
    job_id = stack.submit(*inputs, LONG, ring=False)
    stack.wait_for(job_id, JobState.RUNNING)
    stack.cancel(job_id)
    stack.wait_for(job_id, JobState.CANCELLED)
    assert stack.states(job_id) == ["queued", "preparing", "running", "cancelling", "cancelled"]


def test_two_slots_run_two_jobs_at_once(stack: Stack, inputs: tuple[str, str], worker: Worker) -> None:
    stack.worker(1)
    submitted = [stack.submit(*inputs, LONG) for _ in range(2)]
    for job_id in submitted:
        stack.wait_for(job_id, JobState.RUNNING, seconds=20)
    one, other = (stack.holder(job_id) for job_id in submitted)
    assert one is not other
    assert [stack.job(job_id).state for job_id in submitted] == [JobState.RUNNING] * 2
    for job_id in submitted:
        stack.cancel(job_id)
    for job_id in submitted:
        stack.wait_for(job_id, JobState.CANCELLED)


def _kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(pid, number)
