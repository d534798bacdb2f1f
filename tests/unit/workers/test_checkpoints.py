from pathlib import Path

import pytest
from sqlalchemy import delete

from service.contract import contents
from service.contract.database import Database
from service.contract.records import JobRecord, Record
from service.contract.storage import LocalStorage, StoredFile
from workers import checkpoints
from workers.checkpoints import Checkpoint


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "files")


def stored(storage: LocalStorage, folder: Path, text: str) -> StoredFile:
    path = folder / "c"
    path.write_text(text)
    return storage.put(path)


def two(storage: LocalStorage, folder: Path) -> Checkpoint:
    first = Checkpoint.after(None, stored(storage, folder, "first"), 1, num_threads=2)
    return Checkpoint.after(first, stored(storage, folder, "second"), 2, num_threads=2)


def damage(storage: LocalStorage, sha256: str) -> None:
    path = storage.path(sha256)
    path.chmod(0o644)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def test_the_last_checkpoint_is_restored(storage: LocalStorage, tmp_path: Path) -> None:
    path, record, complaints = checkpoints.restore(storage, two(storage, tmp_path), tmp_path)
    assert path is not None
    assert path.read_text() == "second"
    assert record is not None
    assert (record.step, complaints) == (2, [])


def test_a_flipped_bit_is_noticed_and_the_previous_checkpoint_is_used(storage: LocalStorage, tmp_path: Path) -> None:
    wanted = two(storage, tmp_path)
    damage(storage, wanted.sha256)
    path, record, complaints = checkpoints.restore(storage, wanted, tmp_path)
    assert path is not None
    assert path.read_text() == "first"
    assert record is not None
    assert (record.step, record.num_threads) == (1, 2)
    assert len(complaints) == 1
    assert "step 2 is damaged" in complaints[0]


def test_without_a_usable_checkpoint_the_job_begins_anew(storage: LocalStorage, tmp_path: Path) -> None:
    wanted = two(storage, tmp_path)
    for digest in wanted.digests:
        storage.delete(digest)
    path, record, complaints = checkpoints.restore(storage, wanted, tmp_path)
    assert (path, record) == (None, None)
    assert [("not in the storage" in complaint) for complaint in complaints] == [True, True]


def test_a_record_survives_the_database(storage: LocalStorage, tmp_path: Path) -> None:
    record = two(storage, tmp_path)
    assert checkpoints.recorded(record.model_dump(mode="json")) == record
    assert checkpoints.recorded(None) is None


def test_a_file_that_is_another_jobs_checkpoint_is_not_discarded(storage: LocalStorage, tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'd.db'}")
    Record.metadata.create_all(database.engine)
    record = two(storage, tmp_path)
    mine = stored(storage, tmp_path, "mine alone")
    twin = JobRecord(id="job_0", owner="me", type="distill", spec={}, labels={}, checkpoint=record.model_dump())
    with database.write() as session:
        session.add(twin)
    contents.release(database, storage, [*record.digests, mine.sha256])
    assert all(storage.size(digest) for digest in record.digests), "the twin still resumes from them"
    assert not storage.path(mine.sha256).exists()
    with database.write() as session:
        session.execute(delete(JobRecord))
    contents.release(database, storage, record.digests)
    assert not any(storage.path(digest).exists() for digest in record.digests)
    database.close()
