from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import select

from service.contract import jobs, queue
from service.contract.database import Database
from service.contract.leases import Claim
from service.contract.records import Event, JobRecord, Metric, Record
from service.contract.settings import Settings
from service.contract.storage import LocalStorage
from workers.chronicle import Chronicle
from workers.pipe import Checkpointed, Measured, Progressed, StageBegan, Told
from workers.station import Station
from workers.tenure import Tenure


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    settings = Settings(data_dir=tmp_path, num_threads=3)
    database = Database(settings.database)
    Record.metadata.create_all(database.engine)
    with database.write() as session:
        session.add(JobRecord(id="job_a", owner="me", type="distill", spec={}, labels={}))
    yield Station(settings, database, LocalStorage(tmp_path / "files"), queue.create_celery(settings))
    database.close()


@pytest.fixture
def held(station: Station) -> Claim:
    with station.database.write() as session:
        held = jobs.claim(session, "job_a", "w", 60)
    assert held is not None
    return held


def row(station: Station) -> JobRecord:
    with station.database.read() as session:
        return session.get_one(JobRecord, "job_a")


def chronicle(station: Station, held: Claim) -> Chronicle:
    """A chronicle as an attempt has it, whose lease holds without being renewed."""
    return Chronicle(station, Tenure(station.database, held, jobs.heartbeat, 60, float("inf")), row(station))


def progressed(step: int) -> Progressed:
    return Progressed(fraction=step / 10, step=step, total_steps=10, eta_seconds=1.0)


def checkpointed(folder: Path, step: int) -> Checkpointed:
    path = folder / f"{step}.pt"
    path.write_text(f"state after {step}")
    return Checkpointed(path=path, step=step)


def num_stored(station: Station) -> int:
    storage = cast("LocalStorage", station.storage)
    return len([path for path in storage.root.rglob("*") if path.is_file()])


def test_what_a_child_tells_is_written_in_order(station: Station, held: Claim) -> None:
    chronicle(station, held).record([
        StageBegan(name="loading", index=1, total=2),
        progressed(9),
        Told(event="warning", data={"text": "slow"}),
        StageBegan(name="training", index=2, total=2),
        Measured(step=1, values={"train/loss": 0.5}),
        progressed(1),
        progressed(2),
    ])  # fmt: skip
    job = row(station)
    assert job.stage == {"name": "training", "index": 2, "total": 2}
    assert job.progress is not None
    assert job.progress["step"] == 2
    with station.database.read() as session:
        kinds = list(session.scalars(select(Event.kind).order_by(Event.id)))
        assert kinds == ["state", "stage", "warning", "stage"]
        assert session.scalars(select(Metric.value)).all() == [0.5]


def test_progress_of_an_earlier_stage_does_not_outlive_it(station: Station, held: Claim) -> None:
    chronicle(station, held).record([progressed(9), StageBegan(name="training", index=2, total=2)])
    progress = row(station).progress
    assert progress is not None
    assert progress["step"] == 0


def test_the_last_two_checkpoints_are_kept(station: Station, held: Claim, tmp_path: Path) -> None:
    written = chronicle(station, held)
    for step in range(1, 6):
        written.record([checkpointed(tmp_path, step)])
    checkpoint = row(station).checkpoint
    assert checkpoint is not None
    assert (checkpoint["step"], checkpoint["previous"]["step"], checkpoint["num_threads"]) == (5, 4, 3)
    assert num_stored(station) == 2


def test_of_checkpoints_told_together_only_the_newest_is_stored(station: Station, held: Claim, tmp_path: Path) -> None:
    gone = Checkpointed(path=tmp_path / "replaced meanwhile", step=1)
    chronicle(station, held).record([gone, checkpointed(tmp_path, 2)])
    assert [checkpoint["step"] for checkpoint in [row(station).checkpoint] if checkpoint] == [2]


def test_a_checkpoint_that_cannot_be_stored_costs_only_itself(station: Station, held: Claim, tmp_path: Path) -> None:
    written = chronicle(station, held)
    written.record([checkpointed(tmp_path, 1)])
    written.record([Checkpointed(path=tmp_path / "gone", step=2)])
    assert written.checkpoint is not None
    assert written.checkpoint.step == 1


def test_a_later_attempt_resumes_with_the_same_threads(station: Station, held: Claim, tmp_path: Path) -> None:
    chronicle(station, held).record([checkpointed(tmp_path, 7)])
    other = Settings(data_dir=tmp_path, num_threads=1)
    later = chronicle(Station(other, station.database, station.storage, station.celery), held)
    assert later.num_threads == 3
    path = later.restore(tmp_path)
    assert path is not None
    assert path.read_text() == "state after 7"


def test_a_damaged_checkpoint_is_told_of_and_cleared_away_later(station: Station, held: Claim, tmp_path: Path) -> None:
    first = chronicle(station, held)
    for step in (1, 2):
        first.record([checkpointed(tmp_path, step)])
    assert first.checkpoint is not None
    damaged = cast("LocalStorage", station.storage).path(first.checkpoint.sha256)
    damaged.chmod(0o644)
    damaged.write_text("state after Z")
    later = chronicle(station, held)
    path = later.restore(tmp_path)
    assert path is not None
    assert path.read_text() == "state after 1"
    later.record([checkpointed(tmp_path, 3)])
    assert not damaged.exists()
    assert num_stored(station) == 2
    with station.database.read() as session:
        told = session.scalars(select(Event.data).where(Event.kind == "warning")).one()
    assert "damaged" in told["text"]
