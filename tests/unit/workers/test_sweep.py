import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from service.contract import jobs, queue, resources
from service.contract.database import Database
from service.contract.records import JobRecord, JobState, ModelRecord, Record, ResourceState, WorkerRecord
from service.contract.settings import Settings
from service.contract.storage import LocalStorage
from workers.presence import Presence
from workers.station import Station
from workers.sweep import sweep


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    broker = f"memory://{tmp_path.name}"
    settings = Settings(data_dir=tmp_path, broker_url=SecretStr(broker), max_attempts=2)
    database = Database(settings.database)
    Record.metadata.create_all(database.engine)
    station = Station(settings, database, LocalStorage(tmp_path / "files"), queue.create_celery(settings))
    for name in queue.TASKS:
        with station.celery.connection_for_write() as connection:
            connection.default_channel.queue_declare(name)
            connection.default_channel.queue_purge(name)
    yield station
    station.celery.close()
    database.close()


def add_job(station: Station, job_id: str, **fields: object) -> None:
    with station.database.write() as session:
        session.add(JobRecord(id=job_id, owner="me", type="distill", spec={}, labels={}, **fields))


def lose(station: Station, job_id: str) -> None:
    """Claim a job and let its lease run out."""
    with station.database.write() as session:
        assert jobs.claim(session, job_id, "w", 60) is not None
        session.execute(update(JobRecord).where(JobRecord.id == job_id).values(lease_until=1.0))


def job(station: Station, job_id: str) -> JobRecord:
    with station.database.read() as session:
        return session.get_one(JobRecord, job_id)


def test_a_job_whose_lease_ran_out_is_queued_and_rung_for(station: Station) -> None:
    add_job(station, "job_a")
    lose(station, "job_a")
    sweep(station)
    assert (job(station, "job_a").state, job(station, "job_a").losses) == (JobState.QUEUED, 1)
    assert queue.depth(station.celery, "jobs") == 1


def test_a_job_that_lost_its_worker_too_often_fails(station: Station) -> None:
    add_job(station, "job_a")
    for _ in range(2):
        lose(station, "job_a")
        sweep(station)
    assert job(station, "job_a").state == JobState.FAILED


def test_rings_do_not_pile_up(station: Station) -> None:
    for index in range(3):
        add_job(station, f"job_{index}")
    station.ring("jobs", "job_0")
    for _ in range(5):
        sweep(station)
    assert queue.depth(station.celery, "jobs") == 3


def test_an_inspection_that_lost_its_worker_is_rung_for_and_at_last_rejected(station: Station) -> None:
    with station.database.write() as session:
        session.add(ModelRecord(id="mdl_a", owner="me", name="m", labels={}, declaration={}))
    for depth in (1, 1):
        with station.database.write() as session:
            assert resources.claim_inspection(session, "mdl_a", "w", 60) is not None
            session.execute(update(ModelRecord).values(lease_until=1.0))
        sweep(station)
        assert queue.depth(station.celery, "inspections") == depth
    with station.database.read() as session:
        assert session.get_one(ModelRecord, "mdl_a").state == ResourceState.REJECTED


def test_abandoned_folders_are_removed_and_young_ones_are_not(station: Station) -> None:
    old, young = station.settings.jobs_dir / "job_a-1", station.settings.jobs_dir / "job_b-1"
    for folder in (old, young, station.settings.cache_dir / "incoming" / "k"):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    os.utime(station.settings.cache_dir / "incoming" / "k", (0, 0))
    sweep(station)
    assert not old.exists()
    assert young.exists()
    assert list((station.settings.cache_dir / "incoming").iterdir()) == []


def test_a_sweep_that_fails_does_not_keep_the_others_from_their_turn(station: Station) -> None:
    add_job(station, "job_a")
    lose(station, "job_a")
    station.settings.jobs_dir.write_text("no folder")
    (station.settings.data_dir / "cache").write_text("no folder")
    sweep(station)
    assert job(station, "job_a").state == JobState.QUEUED


def test_a_worker_is_seen_while_it_lives_and_forgotten_when_it_leaves(station: Station) -> None:
    presence = Presence(station, "jobs", "slot0@here", {})
    presence.show()
    station.job_id = "job_a"
    presence.show()
    with station.database.read() as session:
        row = session.scalars(select(WorkerRecord)).one()
    assert (row.id, row.queue, row.job_id) == (station.worker, "jobs", "job_a")
    assert (row.facts["pid"], row.facts["slot"]) == (os.getpid(), "slot0@here")
    assert row.facts["memory_bytes"] > 0
    sweep(station)
    with station.database.write() as session:
        session.execute(update(WorkerRecord).values(heartbeat_at=1.0))
    sweep(station)
    with station.database.read() as session:
        assert session.scalars(select(WorkerRecord)).all() == []


def test_a_worker_that_leaves_takes_its_row_away(station: Station) -> None:
    presence = Presence(station, "jobs", "slot0@here", {})
    presence.start()
    presence.leave()
    with station.database.read() as session:
        assert session.scalars(select(WorkerRecord)).all() == []
