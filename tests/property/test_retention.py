"""Retention under random histories: whatever somebody can still reach stays, and what is old and nobody's goes.

The database's clock is the test's, and so are the times of files. A crash, here, is a removal of rows
after which nobody removed the contents.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

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
from sqlalchemy import delete, insert, select

from service.contract import contents, jobs, resources, retention
from service.contract.database import Database
from service.contract.errors import Diverged
from service.contract.ids import new_id
from service.contract.leases import Claim
from service.contract.records import Event, IdempotencyRecord, JobRecord, Metric, ModelRecord, Record, Upload
from service.contract.settings import Settings
from service.contract.specs import DatasetDeclaration, DistillSpec, ModelDeclaration
from service.contract.storage import LocalStorage, StoredFile
from tests.fake_clock import FakeClock, database_with_clock

HOUR, DAY = 3600.0, 86400.0
KEEP = Settings(retention_seconds=30 * DAY, checkpoint_retention_seconds=7 * DAY, idempotency_seconds=7 * DAY)
UPLOAD = "upl_" + 26 * "0"
TEXT = st.sampled_from("abcde")  # few, so that rows share contents
PICK = st.integers(0, 10)


@dataclass
class Job:
    """What the model says of one job."""

    id: str
    claim: Claim | None = None
    checkpoints: list[StoredFile] = field(default_factory=list)  # the last and the one before it, newest first
    ended: float | None = None
    succeeded: bool = False
    has_detail: bool = False


class Histories(RuleBasedStateMachine):
    """Users, workers, crashes and retention."""

    def __init__(self, database: Database, clock: FakeClock, folder: Path) -> None:
        super().__init__()
        self.database, self.clock, self.folder = database, clock, folder
        self.storage = LocalStorage(Path(tempfile.mkdtemp(dir=folder)))
        self.uploads: dict[str, StoredFile] = {}
        self.models: dict[str, StoredFile] = {}
        self.jobs: dict[str, Job] = {}
        self.keys: dict[str, float] = {}
        self.data = self._put("data")
        self.dataset = self._registered(DatasetDeclaration(name="digits", files={"d.npz": UPLOAD}), self.data)

    def teardown(self) -> None:
        with self.database.write() as session:
            for table in reversed(Record.metadata.sorted_tables):
                session.execute(delete(table))

    def _put(self, text: str) -> StoredFile:
        path = self.folder / "content"
        path.write_text(text)
        stored = self.storage.put(path)
        os.utime(self.storage.path(stored.sha256), (self.clock.now, self.clock.now))
        return stored

    def _registered(self, declaration: ModelDeclaration | DatasetDeclaration, file: StoredFile) -> str:
        with self.database.write() as session:
            made = resources.register(session, "ada", declaration, {"model.safetensors": file}).id
            claim = resources.claim_inspection(session, made, "inspector", 30)
            assert claim is not None
            resources.accept(session, claim, {})
        return made

    def _let_go(self, digests: list[str], crashes: bool) -> None:
        if not crashes:
            contents.release(self.database, self.storage, digests)

    @initialize()
    def one_job_runs(self) -> None:
        self.upload("a")
        self.register(0)
        self.submit(0, "key")
        self.begin(0)
        for text in "vw":
            self.checkpoint(0, text)

    # Users ---------------------------------------------------------------------------------------

    @rule(text=TEXT)
    def upload(self, text: str) -> None:
        file, upload_id = self._put(text), new_id("upl")
        with self.database.write() as session:
            session.add(Upload(id=upload_id, owner="ada", offset=file.size, length=file.size, sha256=file.sha256))
        self.uploads[upload_id] = file

    @precondition(lambda self: self.uploads)
    @rule(pick=PICK)
    def register(self, pick: int) -> None:
        file = list(self.uploads.values())[pick % len(self.uploads)]
        declaration = ModelDeclaration(name="teacher", files={"model.safetensors": UPLOAD})
        self.models[self._registered(declaration, file)] = file

    @precondition(lambda self: self.uploads)
    @rule(pick=PICK, crashes=st.booleans())
    def delete_upload(self, pick: int, crashes: bool) -> None:
        upload_id = list(self.uploads)[pick % len(self.uploads)]
        with self.database.write() as session:
            session.execute(delete(Upload).where(Upload.id == upload_id))
        self._let_go([self.uploads.pop(upload_id).sha256], crashes)

    @precondition(lambda self: self.models)
    @rule(pick=PICK, crashes=st.booleans())
    def delete_model(self, pick: int, crashes: bool) -> None:
        model_id = list(self.models)[pick % len(self.models)]
        with self.database.read() as session:
            used = session.scalar(
                select(JobRecord.id).where(
                    JobRecord.spec["teacher"].as_string() == model_id, JobRecord.state.not_in(list(jobs.DONE))
                )
            )
        if used is None:
            with self.database.write() as session:
                digests = resources.remove(session, model_id, jobs.UNFINISHED)
            del self.models[model_id]
            self._let_go(digests, crashes)

    @precondition(lambda self: self.models)
    @rule(pick=PICK, key=st.text("xyz", min_size=1, max_size=3))
    def submit(self, pick: int, key: str) -> None:
        teacher = list(self.models)[pick % len(self.models)]
        student = {"architecture": {"name": "resnet8"}}
        fields = {"type": "distill", "teacher": teacher, "dataset": self.dataset, "student": student}
        with self.database.write() as session:
            made = jobs.submit(session, "ada", DistillSpec.model_validate(fields)).id
            if key not in self.keys:
                session.execute(insert(IdempotencyRecord).values(owner="ada", key=key, body_sha256="0" * 64))
                self.keys[key] = self.clock.now
        self.jobs[made] = Job(made)

    def _some(self, pick: int, *, running: bool = False, done: bool = False) -> Iterator[Job]:
        found = [
            job
            for job in self.jobs.values()
            if (job.ended is not None) == done and (job.claim is not None and not done) == running
        ]
        yield from found[pick % len(found) :][:1] if found else []

    @rule(pick=PICK, crashes=st.booleans())
    def delete_job(self, pick: int, crashes: bool) -> None:
        for job in self._some(pick, done=True):
            with self.database.write() as session:
                row = session.get_one(JobRecord, job.id)
                digests = jobs.checkpoint_digests(row)
                jobs.remove(session, row)
            del self.jobs[job.id]
            self._let_go(digests, crashes)

    @rule(pick=PICK)
    def retry(self, pick: int) -> None:
        for job in self._some(pick, done=True):
            with self.database.read() as session:
                spec = session.get_one(JobRecord, job.id).spec
            if not job.succeeded and spec["teacher"] in self.models:
                with self.database.write() as session:
                    jobs.retry(session, session.get_one(JobRecord, job.id))
                job.ended, job.claim = None, None

    # Workers -------------------------------------------------------------------------------------

    @rule(pick=PICK)
    def begin(self, pick: int) -> None:
        for job in self._some(pick):
            with self.database.write() as session:
                job.claim = jobs.claim(session, job.id, "wrk", 1000 * DAY)
                assert job.claim is not None
                jobs.start(session, job.claim)

    @rule(pick=PICK, text=st.sampled_from("vwxyz"))
    def checkpoint(self, pick: int, text: str) -> None:
        for job in self._some(pick, running=True):
            made = self._put(text)
            kept = [made, *job.checkpoints[:1]]
            documents = [{"sha256": file.sha256, "size": file.size, "step": 1} for file in kept]
            record = {**documents[0], "previous": documents[1] if len(documents) > 1 else None}
            with self.database.write() as session:
                assert job.claim is not None
                jobs.report_checkpoint(session, job.claim, record)
                jobs.report_metrics(session, job.claim, 1, {"loss": 1.0})
                jobs.report_event(session, job.claim, "log", {"text": "a line"})
            outdated, job.checkpoints, job.has_detail = job.checkpoints[1:], kept, True
            self._let_go([file.sha256 for file in outdated], crashes=False)

    @rule(pick=PICK, text=TEXT)
    def publish(self, pick: int, text: str) -> None:
        for job in self._some(pick, running=True):
            file = self._put(text)
            with self.database.write() as session:
                assert job.claim is not None
                row = session.get_one(JobRecord, job.id)
                made = resources.insert_result(
                    session, row, name="student", declaration={}, facts={}, files={"model.safetensors": file}
                )
                jobs.publish(session, job.claim, made, {"accuracy": 1})
            self.models[made] = file
            job.ended, job.succeeded, job.checkpoints = self.clock.now, True, []

    @rule(pick=PICK)
    def fail(self, pick: int) -> None:
        for job in self._some(pick, running=True):
            with self.database.write() as session:
                assert job.claim is not None
                jobs.fail(session, job.claim, Diverged("NaN").fault())
            job.ended = self.clock.now

    @rule(text=TEXT)
    def crash_before_the_row(self, text: str) -> None:
        self._put(text)
        (self.storage.incoming / "put-0123456789abcdef").write_text("half")

    # Time ----------------------------------------------------------------------------------------

    @rule(hours=st.sampled_from([1, 12, 30, 24 * 5, 24 * 8, 24 * 31]), retains=st.booleans())
    def wait(self, hours: int, retains: bool) -> None:
        self.clock.now += hours * HOUR + 1
        if retains:
            self.retain()

    @rule()
    def retain(self) -> None:
        with patch.object(retention, "time", SimpleNamespace(time=lambda: self.clock.now)):
            retention.retain(self.database, self.storage, KEEP)
        now = self.clock.now
        for job in self.jobs.values():
            if job.ended is not None and not job.succeeded and now - job.ended > 7 * DAY:
                job.checkpoints = []
            if job.ended is not None and now - job.ended > 30 * DAY:
                job.has_detail = False
        self.keys = {key: made for key, made in self.keys.items() if now - made <= 7 * DAY}
        for path in retention.stored(self.storage):  # what is nobody's is young
            assert path.name in self._reachable() or now - path.stat().st_mtime <= DAY

    # What always holds ---------------------------------------------------------------------------

    def _reachable(self) -> set[str]:
        files = [self.data, *self.uploads.values(), *self.models.values()]
        return {file.sha256 for file in files + [file for job in self.jobs.values() for file in job.checkpoints]}

    @invariant()
    def what_is_reachable_is_there(self) -> None:
        for digest in self._reachable():
            assert self.storage.path(digest).exists()

    @invariant()
    def rows_are_those_that_the_model_has(self) -> None:
        with self.database.read() as session:
            rows = {row.id: row for row in session.scalars(select(JobRecord))}
            assert set(rows) == set(self.jobs)
            assert set(session.scalars(select(ModelRecord.id))) == set(self.models)
            assert set(session.scalars(select(Upload.id))) == set(self.uploads)
            assert set(session.scalars(select(IdempotencyRecord.key))) == set(self.keys)
            measured = set(session.scalars(select(Metric.job_id)))
            logged = set(session.scalars(select(Event.job_id).where(Event.kind == "log")))
            told = set(session.scalars(select(Event.job_id).where(Event.kind == "state")))
        assert measured == logged == {job.id for job in self.jobs.values() if job.has_detail}
        assert told == set(self.jobs)
        for job in self.jobs.values():
            assert jobs.checkpoint_digests(rows[job.id]) == [file.sha256 for file in job.checkpoints]
            assert (rows[job.id].report is not None) == job.succeeded


def test_whatever_is_reachable_stays_and_what_is_old_and_nobodys_goes(tmp_path: Path) -> None:
    with database_with_clock(tmp_path / "jobs.db") as (database, clock):
        run_state_machine_as_test(
            lambda: Histories(database, clock, tmp_path), settings=settings(max_examples=30, stateful_step_count=40)
        )
