"""Jobs under any order of what users, workers and the sweep may do, against a model that fits on a page.

Workers act with any claim that was ever handed out, so most of them are stale: their lease ran out,
their job was swept, cancelled, retried, or is another's now. The database's clock is the test's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from service.contract import jobs, resources
from service.contract.database import Database
from service.contract.errors import Conflict, Diverged, InputRejected, LeaseLost
from service.contract.leases import Claim
from service.contract.records import Event, JobRecord, JobState, Metric, ModelRecord, Record
from service.contract.specs import DatasetDeclaration, DistillSpec, ModelDeclaration
from service.contract.storage import StoredFile
from tests.fake_clock import FakeClock, database_with_clock

S = JobState
TICK, LEASE, DEADLINE, MAX_ATTEMPTS = 4.0, 10.0, 33.0, 3  # seconds; no multiple of a tick ends a lease or a deadline
UPLOAD = "upl_" + 26 * "0"
FILE = {"model.safetensors": StoredFile("0" * 64, 10)}
PICK = st.integers(0, 3)
AGE = st.sampled_from([0, 0, 0, 0, 1, 2])


@dataclass
class Expected:
    """What the model says of one job."""

    id: str
    teacher: str
    waits: bool
    deadline: float | None
    queued_at: float
    state: JobState = S.QUEUED
    epoch: int = 0
    attempt: int = 1
    losses: int = 0
    lease_until: float | None = None
    checkpoint: dict[str, Any] | None = None
    story: list[str] = field(default_factory=lambda: ["queued"])
    handed_out: list[int] = field(default_factory=list)  # the epochs of claims

    def go(self, state: JobState) -> None:
        assert state in jobs.TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state
        self.story.append(str(state))
        if state not in jobs.HELD:
            self.lease_until = None

    def lose_worker(self) -> None:
        """Its worker died, or stopped answering."""
        if self.state == S.CANCELLING:
            self.go(S.CANCELLED)
        elif self.state == S.PAUSING:
            self.go(S.PAUSED)
        else:
            self.losses += 1
            if self.losses >= MAX_ATTEMPTS:
                self.go(S.FAILED)
            else:
                self.attempt += 1
                self.go(S.QUEUED)
        self.epoch += 1


class JobStates(RuleBasedStateMachine):
    """Users, workers and the sweep."""

    def __init__(self, database: Database, clock: FakeClock) -> None:
        super().__init__()
        self.database, self.clock = database, clock
        self.jobs: list[Expected] = []
        self.claims: list[tuple[Expected, Claim]] = []
        self.dataset = self._registered(DatasetDeclaration(name="digits", files={"data.npz": UPLOAD}))
        self._inspect(self.dataset)

    def teardown(self) -> None:
        with self.database.write() as session:
            for table in reversed(Record.metadata.sorted_tables):
                session.execute(delete(table))

    def _registered(self, declaration: ModelDeclaration | DatasetDeclaration) -> str:
        with self.database.write() as session:
            return resources.register(session, "ada", declaration, FILE).id

    def _inspect(self, resource_id: str, *, accept: bool = True) -> None:
        with self.database.write() as session:
            claim = resources.claim_inspection(session, resource_id, "inspector", LEASE)
            assert claim is not None
            if accept:
                resources.accept(session, claim, {})
            else:
                resources.reject(session, claim, InputRejected("no").fault())
            for job_id in jobs.jobs_waiting_for(session, resource_id):
                jobs.settle_inputs(session, job_id)

    # Users ---------------------------------------------------------------------------------------

    @initialize(starts=st.booleans())
    def two_jobs_of_which_one_is_claimed(self, starts: bool) -> None:
        for _ in range(2):
            self.submit(has_deadline=False, is_inspected=True)
        self.claim(0)
        if starts:
            self.start(0)

    @precondition(lambda self: len(self.jobs) < 4)
    @rule(has_deadline=st.booleans(), is_inspected=st.booleans())
    def submit(self, has_deadline: bool, is_inspected: bool) -> None:
        teacher = self._registered(ModelDeclaration(name="teacher", files={"model.safetensors": UPLOAD}))
        if is_inspected:
            self._inspect(teacher)
        fields = {"type": "distill", "teacher": teacher, "dataset": self.dataset}
        student = {"architecture": {"name": "resnet8"}}
        deadline = DEADLINE if has_deadline else None
        spec = DistillSpec.model_validate({**fields, "student": student, "deadline_seconds": deadline})
        with self.database.write() as session:
            job_id = jobs.submit(session, "ada", spec).id
        ends = None if deadline is None else self.clock.now + deadline
        self.jobs.append(Expected(job_id, teacher, not is_inspected, ends, self.clock.now))

    @precondition(lambda self: any(self._uninspected()))
    @rule(pick=PICK, accept=st.booleans())
    def inspect(self, pick: int, accept: bool) -> None:
        waiting = self._uninspected()
        job = waiting[pick % len(waiting)]
        self._inspect(job.teacher, accept=accept)
        job.waits = False
        if not accept:
            job.teacher = "rejected"
        self._settle(job)

    def _uninspected(self) -> list[Expected]:
        return [job for job in self.jobs if job.waits]

    def _settle(self, job: Expected) -> None:
        """A queued job whose input was rejected fails."""
        if job.state == S.QUEUED and job.teacher == "rejected":
            job.go(S.FAILED)
            job.epoch += 1

    def _tell(self, job: Expected, action: Callable[[Session, JobRecord], object], *, allowed: bool) -> None:
        def act() -> None:
            with self.database.write() as session:
                action(session, session.get_one(JobRecord, job.id))

        if allowed:
            act()
        else:
            with pytest.raises(Conflict, match=job.state):
                act()

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK, wish=st.sampled_from(["pause", "resume", "cancel", "retry"]))
    def ask(self, pick: int, wish: str) -> None:
        job = self.jobs[pick % len(self.jobs)]
        getattr(self, f"_{wish}")(job)

    def _cancel(self, job: Expected) -> None:
        self._tell(job, jobs.cancel, allowed=job.state not in {S.SUCCEEDED, S.FAILED})
        if job.state in {S.QUEUED, S.PAUSED}:
            job.go(S.CANCELLED)
            job.epoch += 1
        elif job.state in {S.PREPARING, S.RUNNING, S.PAUSING}:
            job.go(S.CANCELLING)

    def _pause(self, job: Expected) -> None:
        self._tell(job, jobs.pause, allowed=job.state not in jobs.DONE | {S.CANCELLING})
        if job.state == S.QUEUED:
            job.go(S.PAUSED)
        elif job.state in {S.PREPARING, S.RUNNING}:
            job.go(S.PAUSING)

    def _resume(self, job: Expected) -> None:
        self._tell(job, jobs.resume, allowed=job.state not in jobs.DONE | {S.CANCELLING, S.PAUSING})
        if job.state == S.PAUSED:
            job.go(S.QUEUED)
            self._settle(job)

    def _retry(self, job: Expected) -> None:
        self._tell(job, jobs.retry, allowed=job.state in {S.FAILED, S.CANCELLED})
        if job.state in {S.FAILED, S.CANCELLED}:
            job.go(S.QUEUED)
            job.attempt, job.losses, job.epoch = job.attempt + 1, 0, job.epoch + 1
            if job.deadline is not None:
                job.deadline += self.clock.now - job.queued_at
            job.queued_at = self.clock.now
            self._settle(job)

    # Workers -------------------------------------------------------------------------------------

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK)
    def claim(self, pick: int) -> None:
        job = self.jobs[pick % len(self.jobs)]
        with self.database.write() as session:
            taken = jobs.claim(session, job.id, "wrk", LEASE)
        assert (taken is not None) == (job.state == S.QUEUED and not job.waits)
        if taken is not None:
            assert taken.epoch > max(job.handed_out, default=0)
            job.handed_out.append(taken.epoch)
            job.epoch, job.lease_until = taken.epoch, self.clock.now + LEASE
            job.go(S.PREPARING)
            self.claims.append((job, taken))

    def _holds(self, job: Expected, claim: Claim) -> bool:
        return claim.epoch == job.epoch and job.lease_until is not None and job.lease_until >= self.clock.now

    def _claim_of(self, age: int) -> tuple[Expected, Claim]:
        """The newest claim that still holds, for age 0 and if there is one, or else one of the newest."""
        holding = [(job, claim) for job, claim in self.claims if self._holds(job, claim)]
        return holding[-1] if age == 0 and holding else self.claims[-1 - age % len(self.claims)]

    def _act(
        self, age: int, action: Callable[[Session, Claim], object], states: frozenset[JobState] = jobs.HELD
    ) -> Expected | None:
        """Act by some claim; return its job if the claim held and the job was in one of `states`."""
        job, claim = self._claim_of(age)
        if self._holds(job, claim) and job.state in states:
            with self.database.write() as session:
                action(session, claim)
            return job
        with pytest.raises(LeaseLost), self.database.write() as session:
            action(session, claim)
        return None

    @precondition(lambda self: self.claims)
    @rule(age=AGE)
    def start(self, age: int) -> None:
        job, claim = self._claim_of(age)
        with self.database.write() as session:
            jobs.start(session, claim)
        if self._holds(job, claim) and job.state == S.PREPARING:
            job.go(S.RUNNING)

    @rule()
    def begin(self) -> None:
        """A worker takes the first job and starts it."""
        waiting = [index for index, job in enumerate(self.jobs) if job.state == S.QUEUED and not job.waits]
        for index in waiting[:1]:
            self.claim(index)
            self.start(0)

    @precondition(lambda self: self.claims)
    @rule(age=AGE)
    def heartbeat(self, age: int) -> None:
        if (job := self._act(age, jobs.heartbeat)) is not None:
            job.lease_until = self.clock.now + LEASE

    @precondition(lambda self: self.claims)
    @rule(age=AGE, step=st.integers(0, 9))
    def report(self, age: int, step: int) -> None:
        made = {"sha256": f"{step:064}", "size": 1, "step": step}

        def report(session: Session, claim: Claim) -> None:
            jobs.report_metrics(session, claim, 1, {"loss": step})
            jobs.report_checkpoint(session, claim, made)

        if (job := self._act(age, report)) is not None:
            job.checkpoint = made

    @precondition(lambda self: self.claims)
    @rule(age=AGE)
    def publish(self, age: int) -> None:
        def publish(session: Session, claim: Claim) -> None:
            row = session.get_one(JobRecord, claim.id)
            made = resources.insert_result(session, row, name="student", declaration={}, facts={}, files=FILE)
            jobs.publish(session, claim, made, {})

        if (job := self._act(age, publish, frozenset({S.RUNNING, S.PAUSING}))) is not None:
            job.go(S.SUCCEEDED)
            job.checkpoint = None

    @precondition(lambda self: self.claims)
    @rule(age=AGE)
    def confirm_stop(self, age: int) -> None:
        if (job := self._act(age, jobs.confirm_stop, frozenset({S.CANCELLING, S.PAUSING}))) is not None:
            job.go(S.CANCELLED if job.state == S.CANCELLING else S.PAUSED)

    @precondition(lambda self: self.claims)
    @rule(age=AGE, how=st.sampled_from(["hand_back", "give_up", "give_up", "fail"]))
    def let_go(self, age: int, how: str) -> None:
        getattr(self, f"_{how}")(age)

    def _fail(self, age: int) -> None:
        fault = Diverged("NaN").fault()
        if (job := self._act(age, lambda session, claim: jobs.fail(session, claim, fault))) is not None:
            job.go(S.FAILED)

    def _hand_back(self, age: int) -> None:
        states = frozenset({S.PREPARING, S.RUNNING})
        if (job := self._act(age, lambda session, claim: jobs.hand_back(session, claim, "bye"), states)) is not None:
            job.go(S.QUEUED)

    def _give_up(self, age: int) -> None:
        def give_up(session: Session, claim: Claim) -> None:
            jobs.give_up(session, claim, "its process died", MAX_ATTEMPTS)

        if (job := self._act(age, give_up)) is not None:
            job.lose_worker()

    # Time and the sweep --------------------------------------------------------------------------

    @rule(ticks=st.integers(1, 4))
    def wait(self, ticks: int) -> None:
        self.clock.now += ticks * TICK

    @rule()
    def sweep(self) -> None:
        with self.database.write() as session:
            takeable = jobs.sweep(session, MAX_ATTEMPTS)
        for job in self.jobs:
            if job.lease_until is not None and job.lease_until < self.clock.now:
                job.lose_worker()
            late = job.deadline is not None and job.deadline < self.clock.now
            if late and job.state in {S.QUEUED, S.PAUSED}:
                job.go(S.FAILED)
                job.epoch += 1
            self._settle(job)
        ready = [job for job in self.jobs if job.state == S.QUEUED and not job.waits]
        assert takeable == [job.id for job in sorted(ready, key=lambda job: (job.queued_at, job.id))]

    # What always holds ---------------------------------------------------------------------------

    @invariant()
    def rows_and_events_are_as_the_model_says(self) -> None:
        with self.database.glance() as connection:
            rows = {row.id: row for row in connection.execute(select(JobRecord.__table__))}
            made = connection.execute(select(ModelRecord.lineage_job_id, ModelRecord.id)).all()
            events = connection.execute(
                select(Event.job_id, Event.data).where(Event.kind == "state").order_by(Event.id)
            )
            told = [(job_id, S(data["state"])) for job_id, data in events]
            points = select(func.count()).select_from(Metric).group_by(Metric.job_id)
            assert set(connection.scalars(points)) <= {1}  # a repeated step replaces what was there
        for job in self.jobs:
            row = rows[job.id]
            assert (row.state, row.epoch, row.attempt, row.losses) == (job.state, job.epoch, job.attempt, job.losses)
            assert row.lease_until == (None if job.lease_until is None else pytest.approx(job.lease_until))
            assert row.checkpoint == job.checkpoint
            assert (row.finished_at is not None) == (job.state in jobs.DONE)
            results = [model_id for lineage, model_id in made if lineage == job.id]
            assert results == ([row.result_model_id] if job.state == S.SUCCEEDED else [])
            story = [state for job_id, state in told if job_id == job.id]
            assert story == job.story
            assert all(after in jobs.TRANSITIONS[before] for before, after in pairwise(story))


def test_jobs_follow_the_model_in_any_order_of_actions(tmp_path: Path) -> None:
    with database_with_clock(tmp_path / "jobs.db") as (database, clock):
        run_state_machine_as_test(
            lambda: JobStates(database, clock), settings=settings(max_examples=100, stateful_step_count=50)
        )
