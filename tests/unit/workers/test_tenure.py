import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from service.contract import jobs
from service.contract.database import Database
from service.contract.errors import LeaseLost, Unavailable
from service.contract.leases import Claim
from service.contract.records import JobRecord, JobState, Record
from workers.tenure import Tenure

LEASE = 1.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'd.db'}")
    Record.metadata.create_all(database.engine)
    with database.write() as session:
        session.add(JobRecord(id="job_a", owner="me", type="distill", spec={}, labels={}))
    yield database
    database.close()


def claim(database: Database) -> Claim:
    with database.write() as session:
        held = jobs.claim(session, "job_a", "w", LEASE)
    assert held is not None
    return held


def tenure(database: Database, held: Claim, every: float = 0.1) -> Tenure[tuple[JobState, bool]]:
    return Tenure(database, held, jobs.heartbeat, every, time.monotonic())


def test_a_lease_is_renewed_as_long_as_the_tenure_lasts(database: Database) -> None:
    beats: list[float] = []
    with tenure(database, claim(database)) as kept:
        kept.on_renewed = beats.append
        time.sleep(1.5 * LEASE)
        assert not kept.lost
        kept.write(lambda session: jobs.report_progress(session, kept.claim, {"fraction": 0.5}))
    assert len(beats) > 3
    assert beats == sorted(beats)
    assert kept.answer == (JobState.PREPARING, False)


def test_a_tenure_ends_when_another_worker_has_the_epoch(database: Database) -> None:
    with tenure(database, claim(database)) as kept:
        with database.write() as session:
            session.execute(update(JobRecord).values(epoch=JobRecord.epoch + 1))
        time.sleep(0.3)
        assert kept.lost
        with pytest.raises(LeaseLost):
            kept.write(lambda session: jobs.report_progress(session, kept.claim, {"fraction": 0.5}))


def test_a_tenure_that_is_not_renewed_ends_with_the_lease(database: Database) -> None:
    with tenure(database, claim(database), every=100.0) as kept:
        assert not kept.lost
        time.sleep(LEASE)
        assert kept.lost


def test_a_write_is_repeated_while_the_database_does_not_answer(database: Database) -> None:
    tries: list[int] = []

    def change(session: Session) -> str:
        tries.append(len(tries))
        if len(tries) < 3:
            raise Unavailable("not now")
        return "done"

    with tenure(database, claim(database)) as kept:
        assert kept.write(change) == "done"
    assert len(tries) == 3


def test_a_write_is_given_up_when_the_lease_has_run_out(database: Database) -> None:
    def change(session: Session) -> None:
        raise Unavailable("never")

    with tenure(database, claim(database), every=100.0) as kept, pytest.raises(LeaseLost):
        kept.write(change)


def test_the_storage_is_tried_for_one_lease(database: Database) -> None:
    def put() -> None:
        raise Unavailable("disk full")

    began = time.monotonic()
    with tenure(database, claim(database)) as kept, pytest.raises(Unavailable, match="disk full"):
        kept.persist(put)
    assert LEASE <= time.monotonic() - began < 3 * LEASE
