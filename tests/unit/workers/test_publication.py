from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from service.contract import jobs, resources
from service.contract.database import Database
from service.contract.errors import LeaseLost
from service.contract.leases import Claim
from service.contract.records import File, JobRecord, JobState, ModelRecord, Record
from service.contract.storage import LocalStorage
from workers import publication
from workers.pipe import Finished
from workers.tenure import Tenure


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'd.db'}")
    Record.metadata.create_all(database.engine)
    with database.write() as session:
        session.add(JobRecord(id="job_a", owner="me", type="distill", spec={}, labels={"team": "x"}))
    yield database
    database.close()


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "files")


@pytest.fixture
def held(database: Database) -> Claim:
    with database.write() as session:
        held = jobs.claim(session, "job_a", "w", 60)
        assert held is not None
        jobs.start(session, held)
        jobs.report_checkpoint(session, held, {"sha256": "0" * 64, "size": 1, "step": 1})
    return held


@pytest.fixture
def result(tmp_path: Path) -> Finished:
    folder = tmp_path / "artifact"
    (folder / "plots").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "plots" / "curve.png").write_bytes(b"picture")
    return Finished(folder=folder, name="student", declaration={"name": "student"}, facts={"macs": 1}, report={"a": 1})


def job(database: Database) -> JobRecord:
    with database.read() as session:
        return session.get_one(JobRecord, "job_a")


def publish(database: Database, storage: LocalStorage, held: Claim, result: Finished) -> str:
    tenure = Tenure(database, held, jobs.heartbeat, 60, float("inf"))
    files = publication.store(tenure, storage, result.folder)
    return publication.publish(tenure, storage, job(database), result, files)


def test_a_published_result_is_a_model_with_all_its_files(
    database: Database, storage: LocalStorage, held: Claim, result: Finished
) -> None:
    model_id = publish(database, storage, held, result)
    with database.read() as session:
        files = resources.files_of(session, model_id)
        model = session.get_one(ModelRecord, model_id)
    assert sorted(files) == ["model.safetensors", "plots/curve.png"]
    assert b"".join(storage.read(files["model.safetensors"].sha256)) == b"weights"
    assert (model.lineage_job_id, model.owner, model.labels) == ("job_a", "me", {"team": "x"})
    ended = job(database)
    assert (ended.state, ended.result_model_id, ended.report) == (JobState.SUCCEEDED, model_id, {"a": 1})
    assert ended.checkpoint is None, "nobody resumes from it any more"


@pytest.mark.parametrize(
    "change",
    [{"epoch": 9}, {"lease_until": 1.0}, {"state": JobState.CANCELLING}],
    ids=["another epoch", "a lease that ran out", "a cancelled job"],
)
def test_a_worker_that_may_not_publish_leaves_no_trace_in_the_database(
    database: Database, storage: LocalStorage, held: Claim, result: Finished, change: dict[str, object]
) -> None:
    with database.write() as session:
        session.execute(update(JobRecord).values(**change))
    with pytest.raises(LeaseLost):
        publish(database, storage, held, result)
    with database.read() as session:
        assert session.scalars(select(ModelRecord)).all() == []
        assert session.scalars(select(File)).all() == []
    assert job(database).result_model_id is None
    assert job(database).checkpoint is not None


def test_a_result_is_published_once(database: Database, storage: LocalStorage, held: Claim, result: Finished) -> None:
    publish(database, storage, held, result)
    with pytest.raises(LeaseLost):
        publish(database, storage, held, result)


def test_a_file_that_somebody_deleted_before_the_reference_was_there_is_stored_again(
    database: Database, storage: LocalStorage, held: Claim, result: Finished
) -> None:
    tenure = Tenure(database, held, jobs.heartbeat, 60, float("inf"))
    files = publication.store(tenure, storage, result.folder)
    storage.delete(files["model.safetensors"].sha256)
    publication.publish(tenure, storage, job(database), result, files)
    assert storage.size(files["model.safetensors"].sha256) == len(b"weights")
