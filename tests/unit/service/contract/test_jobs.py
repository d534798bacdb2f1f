import time
from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from service.contract import jobs, resources
from service.contract.database import Database
from service.contract.errors import Conflict, Diverged, InputRejected, LeaseLost
from service.contract.leases import Claim
from service.contract.records import Event, JobRecord, JobState, Metric, ModelRecord
from service.contract.specs import DatasetDeclaration, DistillSpec, ModelDeclaration
from service.contract.storage import StoredFile

OWNER = "ada"
FILE = {"model.safetensors": StoredFile("0" * 64, 10)}
UPLOAD = {"model.safetensors": "upl_" + "0" * 26}


def register(database: Database, *, ready: bool = True) -> tuple[str, str]:
    model = ModelDeclaration(name="teacher", files=UPLOAD)
    dataset = DatasetDeclaration(name="digits", files={"data.npz": "upl_" + "0" * 26})
    with database.write() as session:
        ids = tuple(resources.register(session, OWNER, item, FILE).id for item in (model, dataset))
    for resource_id in ids if ready else ():
        inspect(database, resource_id)
    return ids[0], ids[1]


def inspect(database: Database, resource_id: str) -> None:
    with database.write() as session:
        claim = resources.claim_inspection(session, resource_id, "inspector", 30)
        assert claim is not None
        resources.accept(session, claim, {"parameters": 1})


def submit(database: Database, teacher: str, dataset: str, **fields: object) -> str:
    spec = DistillSpec.model_validate(
        {
            "type": "distill",
            "teacher": teacher,
            "dataset": dataset,
            "student": {"architecture": {"name": "resnet8"}},
            **fields,
        }
    )
    with database.write() as session:
        return jobs.submit(session, OWNER, spec).id


def claim(database: Database, job_id: str, lease_seconds: float = 30, worker: str = "w1") -> Claim | None:
    with database.write() as session:
        return jobs.claim(session, job_id, worker, lease_seconds)


def held(database: Database, job_id: str, lease_seconds: float = 30, worker: str = "w1") -> Claim:
    taken = claim(database, job_id, lease_seconds, worker)
    assert taken is not None
    return taken


def look(database: Database, job_id: str) -> JobRecord:
    with database.read() as session:
        job = session.get(JobRecord, job_id)
        assert job is not None
        return job


@pytest.fixture
def job_id(database: Database) -> str:
    return submit(database, *register(database))


def test_a_queued_job_is_claimed_by_exactly_one_worker(database: Database, job_id: str) -> None:
    assert claim(database, job_id) is not None
    assert claim(database, job_id, worker="w2") is None
    assert look(database, job_id).state == JobState.PREPARING


def test_a_published_job_has_its_result_and_tells_its_way_in_events(database: Database, job_id: str) -> None:
    taken = held(database, job_id)
    with database.write() as session:
        jobs.start(session, taken)
        jobs.report_stage(session, taken, "training", 1, 3)
        jobs.report_metrics(session, taken, 1, {"validation/accuracy": 0.5})
        jobs.report_metrics(session, taken, 1, {"validation/accuracy": 0.6})
        model_id = resources.insert_result(
            session, session.get_one(JobRecord, job_id), name="student", declaration={}, facts={}, files=FILE
        )
        jobs.publish(session, taken, model_id, {"accuracy": 1})
    job = look(database, job_id)
    assert (job.state, job.result_model_id, job.lease_until) == (JobState.SUCCEEDED, model_id, None)
    with database.read() as session:
        assert session.get_one(ModelRecord, model_id).lineage_job_id == job_id
        assert [row.value for row in session.query(Metric)] == [0.6]
        states = [event.data["state"] for event in session.query(Event).order_by(Event.id) if event.kind == "state"]
    assert states == ["queued", "preparing", "running", "succeeded"]


def test_a_worker_past_its_lease_changes_nothing_even_when_nobody_took_over(database: Database, job_id: str) -> None:
    taken = held(database, job_id, lease_seconds=0.05)
    time.sleep(0.1)
    for write in (
        lambda session: jobs.heartbeat(session, taken),
        lambda session: jobs.publish(session, taken, "mdl", {}),
        lambda session: jobs.fail(session, taken, Diverged("NaN").fault()),
        lambda session: jobs.report_progress(session, taken, {"fraction": 1}),
    ):
        with pytest.raises(LeaseLost), database.write() as session:
            write(session)
    assert look(database, job_id).state == JobState.PREPARING


def test_a_lost_lease_queues_the_job_again_and_the_old_worker_is_shut_out(database: Database, job_id: str) -> None:
    old = held(database, job_id, lease_seconds=0.05)
    time.sleep(0.1)
    with database.write() as session:
        assert jobs.sweep(session, max_attempts=3) == [job_id]
    new = held(database, job_id, worker="w2")
    assert new.epoch > old.epoch
    assert look(database, job_id).attempt == 2
    with pytest.raises(LeaseLost), database.write() as session:
        jobs.heartbeat(session, old)
    with database.write() as session:
        assert jobs.heartbeat(session, new) == (JobState.PREPARING, False)


def test_a_job_that_loses_its_worker_too_often_fails_with_the_reason(database: Database, job_id: str) -> None:
    for _ in range(3):
        taken = held(database, job_id)
        with database.write() as session:
            jobs.give_up(session, taken, "the worker was killed for using 31 GiB", max_attempts=3)
    job = look(database, job_id)
    assert job.state == JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "attempts_exhausted"
    assert "31 GiB" in job.error["detail"]


def test_a_job_waits_for_its_inputs_and_is_released_when_they_are_inspected(database: Database) -> None:
    teacher, dataset = register(database, ready=False)
    job_id = submit(database, teacher, dataset)
    assert claim(database, job_id) is None
    inspect(database, teacher)
    inspect(database, dataset)
    with database.write() as session:
        assert jobs.jobs_waiting_for(session, dataset) == [job_id]
        assert jobs.settle_inputs(session, job_id)
    assert claim(database, job_id) is not None


def test_a_rejected_input_fails_the_job_with_that_inputs_error(database: Database) -> None:
    teacher, dataset = register(database, ready=False)
    job_id = submit(database, teacher, dataset)
    with database.write() as session:
        inspection = resources.claim_inspection(session, teacher, "inspector", 30)
        assert inspection is not None
        resources.reject(session, inspection, InputRejected("holds a pickle", code="pickle_refused").fault())
        assert not jobs.settle_inputs(session, job_id)
    job = look(database, job_id)
    assert job.state == JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "pickle_refused"


def test_cancelling_a_queued_job_ends_it_at_once_and_asking_again_is_harmless(database: Database, job_id: str) -> None:
    for _ in range(2):
        with database.write() as session:
            jobs.cancel(session, session.get_one(JobRecord, job_id))
    assert look(database, job_id).state == JobState.CANCELLED


def test_a_cancelled_running_job_cannot_publish_any_more(database: Database, job_id: str) -> None:
    taken = held(database, job_id)
    with database.write() as session:
        jobs.start(session, taken)
        jobs.cancel(session, session.get_one(JobRecord, job_id))
    assert look(database, job_id).state == JobState.CANCELLING
    with pytest.raises(LeaseLost), database.write() as session:
        jobs.publish(session, taken, "mdl", {})
    with database.write() as session:
        jobs.confirm_stop(session, taken)
    assert look(database, job_id).state == JobState.CANCELLED


def act(database: Database, action: Callable[[Session, JobRecord], object], job_id: str) -> object:
    with database.write() as session:
        return action(session, session.get_one(JobRecord, job_id))


def test_a_queued_job_pauses_at_once_and_resumes_in_its_old_place(database: Database, job_id: str) -> None:
    place = look(database, job_id).queued_at
    for _ in range(2):
        act(database, jobs.pause, job_id)
    assert look(database, job_id).state == JobState.PAUSED
    assert claim(database, job_id) is None
    assert act(database, jobs.resume, job_id) is True
    assert act(database, jobs.resume, job_id) is False
    job = look(database, job_id)
    assert (job.state, job.queued_at, job.attempt) == (JobState.QUEUED, place, 1)


def test_a_running_job_is_paused_when_its_worker_says_so_and_keeps_its_checkpoint(
    database: Database, job_id: str
) -> None:
    taken = held(database, job_id)
    checkpoint = {"sha256": "c" * 64, "size": 1, "step": 7}
    with database.write() as session:
        jobs.start(session, taken)
        jobs.report_checkpoint(session, taken, checkpoint)
    act(database, jobs.pause, job_id)
    assert look(database, job_id).state == JobState.PAUSING
    with pytest.raises(Conflict, match="still pausing"):
        act(database, jobs.resume, job_id)
    with pytest.raises(LeaseLost), database.write() as session:
        jobs.hand_back(session, taken, "leaving")
    with database.write() as session:
        jobs.confirm_stop(session, taken)
    job = look(database, job_id)
    assert (job.state, job.worker, job.lease_until) == (JobState.PAUSED, None, None)
    assert job.checkpoint == checkpoint
    assert act(database, jobs.resume, job_id) is True
    assert held(database, job_id, worker="w2").epoch > taken.epoch


def test_nobody_asked_a_running_job_to_stop(database: Database, job_id: str) -> None:
    taken = held(database, job_id)
    with database.write() as session:
        jobs.start(session, taken)
    with pytest.raises(LeaseLost), database.write() as session:
        jobs.confirm_stop(session, taken)
    assert look(database, job_id).state == JobState.RUNNING


def test_a_worker_that_dies_while_its_job_is_pausing_leaves_it_paused(database: Database, job_id: str) -> None:
    taken = held(database, job_id, lease_seconds=0.05)
    act(database, jobs.pause, job_id)
    time.sleep(0.1)
    with database.write() as session:
        assert jobs.sweep(session, max_attempts=3) == []
    job = look(database, job_id)
    assert (job.state, job.losses) == (JobState.PAUSED, 0)
    assert job.epoch > taken.epoch


def test_a_pausing_job_can_still_be_cancelled_and_a_paused_one_too(database: Database, job_id: str) -> None:
    taken = held(database, job_id)
    act(database, jobs.pause, job_id)
    act(database, jobs.cancel, job_id)
    assert look(database, job_id).state == JobState.CANCELLING
    with pytest.raises(Conflict, match="cancelling"):
        act(database, jobs.pause, job_id)
    with database.write() as session:
        jobs.confirm_stop(session, taken)
    act(database, jobs.retry, job_id)
    act(database, jobs.pause, job_id)
    act(database, jobs.cancel, job_id)
    assert look(database, job_id).state == JobState.CANCELLED


def test_a_job_that_was_asked_to_pause_may_still_succeed(database: Database, job_id: str) -> None:
    taken = held(database, job_id)
    with database.write() as session:
        jobs.start(session, taken)
    act(database, jobs.pause, job_id)
    with database.write() as session:
        jobs.publish(session, taken, "mdl", {})
    assert look(database, job_id).state == JobState.SUCCEEDED


def test_a_paused_job_fails_when_its_deadline_passes(database: Database) -> None:
    job_id = submit(database, *register(database), deadline_seconds=0.05)
    act(database, jobs.pause, job_id)
    time.sleep(0.1)
    with database.write() as session:
        jobs.sweep(session, max_attempts=3)
    job = look(database, job_id)
    assert job.state == JobState.FAILED
    assert job.error is not None
    assert "while the job was paused" in job.error["detail"]


def test_a_job_paused_while_it_waits_for_an_inspection_waits_again_when_resumed(database: Database) -> None:
    teacher, dataset = register(database, ready=False)
    job_id = submit(database, teacher, dataset)
    act(database, jobs.pause, job_id)
    assert act(database, jobs.resume, job_id) is False
    assert look(database, job_id).waiting_for is not None


def test_a_succeeded_job_is_neither_cancelled_nor_paused_nor_tried_again(database: Database, job_id: str) -> None:
    taken = held(database, job_id)
    with database.write() as session:
        jobs.start(session, taken)
        jobs.publish(session, taken, "mdl", {})
    for action in (jobs.cancel, jobs.pause, jobs.resume, jobs.retry):
        with pytest.raises(Conflict, match="succeeded"), database.write() as session:
            action(session, session.get_one(JobRecord, job_id))


def test_a_failed_job_that_is_tried_again_keeps_its_id_and_counts_the_attempt(database: Database, job_id: str) -> None:
    taken = held(database, job_id)
    with database.write() as session:
        jobs.fail(session, taken, Diverged("the loss became NaN").fault())
    with database.write() as session:
        assert jobs.retry(session, session.get_one(JobRecord, job_id))
    job = look(database, job_id)
    assert (job.state, job.attempt, job.error) == (JobState.QUEUED, 2, None)


def test_a_job_handed_back_by_a_leaving_worker_uses_up_no_attempt(database: Database, job_id: str) -> None:
    taken = held(database, job_id)
    with database.write() as session:
        jobs.hand_back(session, taken, "the worker is stopping")
    job = look(database, job_id)
    assert (job.state, job.attempt, job.reason) == (JobState.QUEUED, 1, "the worker is stopping")


def test_a_queued_job_past_its_deadline_fails(database: Database) -> None:
    job_id = submit(database, *register(database), deadline_seconds=0.01)
    time.sleep(0.05)
    with database.write() as session:
        assert jobs.sweep(session, max_attempts=3) == []
    job = look(database, job_id)
    assert job.error is not None
    assert job.error["code"] == "deadline_exceeded"


def test_an_input_of_an_unfinished_job_cannot_be_deleted(database: Database) -> None:
    teacher, dataset = register(database)
    job_id = submit(database, teacher, dataset)
    with pytest.raises(Conflict, match=job_id), database.write() as session:
        resources.remove(session, teacher, jobs.UNFINISHED)
    with database.write() as session:
        jobs.cancel(session, session.get_one(JobRecord, job_id))
        # The dataset is registered under the same digest, so nothing is unreferenced yet.
        assert resources.remove(session, teacher, jobs.UNFINISHED) == []
        assert resources.remove(session, dataset, jobs.UNFINISHED) == ["0" * 64]


def test_an_inspection_that_loses_its_worker_too_often_rejects_the_files(database: Database) -> None:
    teacher, _ = register(database, ready=False)
    for _ in range(3):
        with database.write() as session:
            assert resources.claim_inspection(session, teacher, "inspector", 0.01) is not None
        time.sleep(0.03)
        with database.write() as session:
            resources.sweep_inspections(session, max_attempts=3)
    with database.read() as session:
        model = session.get_one(ModelRecord, teacher)
    assert model.state == "rejected"


def test_every_state_that_a_worker_holds_can_return_to_the_queue_or_end() -> None:
    for state in jobs.HELD:
        assert jobs.TRANSITIONS[state] & (jobs.DONE | {JobState.QUEUED, JobState.PAUSED})
    assert set(jobs.TRANSITIONS) == set(JobState)
