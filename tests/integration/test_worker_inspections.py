"""Inspections by a real worker: what is found, what is refused, and what the reader's limits stop."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.contract.records import JobState, ResourceState
from service.contract.specs import ModelDeclaration
from tests.integration.worker_stack import ARCHITECTURE, SHORT, UPLOAD, Stack, Worker, running_stack

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as stack:
        yield stack


@pytest.fixture(scope="module")
def inspector(stack: Stack) -> Worker:
    return stack.start("inspections")


def broken_teacher(stack: Stack) -> str:
    declaration = {"name": "broken", "files": {"model.safetensors": UPLOAD}, "architecture": ARCHITECTURE}
    return stack.register(ModelDeclaration.model_validate(declaration), {"model.safetensors": b"no tensors"})


def test_good_inputs_become_ready_with_their_facts(stack: Stack, inspector: Worker) -> None:
    teacher, dataset = stack.teacher(), stack.digits()
    assert stack.inspected(teacher).state == ResourceState.READY
    assert stack.inspected(dataset).state == ResourceState.READY
    assert stack.resource(teacher).facts["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    assert stack.resource(dataset).facts
    assert list((stack.settings.cache_dir / "incoming").iterdir()) == []
    assert "libtorch" not in Path(f"/proc/{inspector.pid}/maps").read_text(), "torch stays with the children"


def test_the_worker_tells_what_confines_its_readers(stack: Stack, inspector: Worker) -> None:
    jail = stack.seen()[inspector.pid].facts["jail"]
    assert jail["limits"] is jail["no_new_privileges"] is True
    assert isinstance(jail["landlock"], str)
    assert jail["seccomp"] in inspector.log
    assert ("jail is closed" if all(jail.values()) else "jail has gaps") in inspector.log


def test_the_process_that_readers_are_forked_from_has_no_secrets(stack: Stack, inspector: Worker) -> None:
    server = inspector.fork_server()
    assert server
    assert b"STILLHOUSE_" in Path(f"/proc/{inspector.pid}/environ").read_bytes()
    assert b"STILLHOUSE_" not in Path(f"/proc/{server.pid}/environ").read_bytes()


def test_the_same_content_is_read_once(stack: Stack, inspector: Worker) -> None:
    stack.inspected(stack.teacher())
    entries = {path.name for path in stack.settings.cache_dir.iterdir()}
    assert stack.inspected(stack.teacher()).state == ResourceState.READY
    assert {path.name for path in stack.settings.cache_dir.iterdir()} == entries


def test_a_rejected_input_fails_the_jobs_that_wait_for_it(stack: Stack, inspector: Worker) -> None:
    stack.freeze(inspector)
    teacher, dataset = broken_teacher(stack), stack.digits()
    job_id = stack.submit(teacher, dataset, SHORT, ring=False)
    assert stack.job(job_id).waiting_for is not None
    inspector.send(signal.SIGCONT)
    assert stack.inspected(teacher).state == ResourceState.REJECTED
    assert stack.resource(teacher).error["detail"]
    job = stack.wait_for(job_id, JobState.FAILED)
    assert job.error is not None
    assert teacher in job.error["detail"]


def test_a_lost_message_is_rung_again(stack: Stack, inspector: Worker) -> None:
    stack.freeze(inspector)
    resource_id = stack.teacher()
    stack.flush()
    inspector.send(signal.SIGCONT)
    assert stack.inspected(resource_id).state == ResourceState.READY


def test_sigterm_ends_the_inspector_in_order(stack: Stack, inspector: Worker) -> None:
    began = time.monotonic()
    assert inspector.end(signal.SIGTERM) == 0
    assert time.monotonic() - began < 15
    assert inspector.pid not in stack.seen()
