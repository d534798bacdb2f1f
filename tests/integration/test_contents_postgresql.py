"""Contents that rows share, retention and the doctor on PostgreSQL, where transactions do run beside each other."""

import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, insert, make_url, select, text, update

from service.contract import contents, jobs, resources, retention
from service.contract.database import Database, clock
from service.contract.errors import Diverged
from service.contract.leases import Claim
from service.contract.migrate import migrate
from service.contract.records import Event, IdempotencyRecord, JobRecord, Metric
from service.contract.settings import Settings
from service.contract.specs import DatasetDeclaration, DistillSpec, ModelDeclaration
from service.contract.storage import LocalStorage, StoredFile
from service.doctor.examination import examine, mend
from service.doctor.findings import Grade
from tests.integration.api.test_postgresql import server as server  # noqa: PLC0414  a fixture
from workers import publication
from workers.pipe import Finished
from workers.tenure import Tenure

DAY = 86400.0
UPLOAD = "upl_" + 26 * "0"
FIELDS = {"type": "distill", "student": {"architecture": {"name": "resnet8"}}}


@pytest.fixture
def settings(server: str, tmp_path: Path) -> Iterator[Settings]:
    url, name = make_url(server).set(drivername="postgresql+psycopg"), f"stillhouse_{secrets.token_hex(6)}"
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    (tmp_path / "data").mkdir(mode=0o700)
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        try:
            mine = url.set(database=name).render_as_string(hide_password=False)
            migrate(mine)
            yield Settings(data_dir=tmp_path / "data", database_url=mine, min_free_bytes=0, retention_seconds=DAY)  # type: ignore[arg-type]
        finally:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database)
    yield database
    database.close()


@pytest.fixture
def storage(settings: Settings) -> LocalStorage:
    return LocalStorage(settings.data_dir / "files")


def put(storage: LocalStorage, content: str) -> StoredFile:
    path = storage.root.parent / "content"
    path.write_text(content)
    return storage.put(path)


def running(database: Database, storage: LocalStorage) -> tuple[Claim, JobRecord]:
    with database.write() as session:
        ids = []
        for declaration in (
            ModelDeclaration(name="teacher", files={"model.safetensors": UPLOAD}),
            DatasetDeclaration(name="digits", files={"data.npz": UPLOAD}),
        ):
            ids.append(resources.register(session, "ada", declaration, {"data": put(storage, "input")}).id)
            inspection = resources.claim_inspection(session, ids[-1], "inspector", 30)
            assert inspection is not None
            resources.accept(session, inspection, {})
        spec = DistillSpec.model_validate({**FIELDS, "teacher": ids[0], "dataset": ids[1]})
        job = jobs.submit(session, "ada", spec)
        claim = jobs.claim(session, job.id, "wrk", 60)
        assert claim is not None
        jobs.start(session, claim)
        return claim, job


def test_a_late_attempt_that_clears_its_files_away_leaves_those_of_the_one_that_is_publishing(
    database: Database, storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, job = running(database, storage)
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "model.safetensors").write_text("the same bytes in both attempts")
    files = {"model.safetensors": storage.put(folder / "model.safetensors")}
    digests = [file.sha256 for file in files.values()]
    late = threading.Thread(target=contents.release, args=(database, storage, digests))
    make_sure = publication._make_sure

    def slowly(*arguments: object) -> None:
        make_sure(*arguments)  # type: ignore[arg-type]
        late.start()
        late.join(0.5)
        assert late.is_alive()  # it waits until the publication is seen

    monkeypatch.setattr(publication, "_make_sure", slowly)
    result = Finished(folder=folder, name="student", declaration={}, facts={}, report={})
    with Tenure(database, claim, jobs.heartbeat, 5.0, time.monotonic()) as tenure:
        publication.publish(tenure, storage, job, result, files)
    late.join()
    assert storage.size(digests[0]) == files["model.safetensors"].size


def test_retention_and_the_doctor_do_on_postgresql_what_they_do_on_sqlite(
    settings: Settings, database: Database, storage: LocalStorage
) -> None:
    claim, job = running(database, storage)
    checkpoint, orphan = put(storage, "checkpoint"), put(storage, "orphan")
    with database.write() as session:
        jobs.report_checkpoint(session, claim, {"sha256": checkpoint.sha256, "size": checkpoint.size, "step": 1})
        jobs.report_metrics(session, claim, 1, {"loss": 1.0})
        jobs.report_event(session, claim, "log", {"text": "a line"})
        session.execute(insert(IdempotencyRecord).values(owner="ada", key="k", body_sha256="0" * 64))
    assert {found.grade for found in examine(settings, deep=True)} == {Grade.OK}
    assert not retention.retain(database, storage, settings)

    long_ago = clock() - 8 * DAY
    with database.write() as session:
        jobs.fail(session, claim, Diverged("NaN").fault())
        session.execute(update(JobRecord).values(finished_at=long_ago))
        session.execute(update(IdempotencyRecord).values(created_at=long_ago))
    os.utime(storage.path(orphan.sha256), (0, 0))
    assert [found.check for found in examine(settings) if found.grade != Grade.OK] == ["orphans"]
    assert [path.name for path in mend(settings)] == [orphan.sha256]
    removed = retention.retain(database, storage, settings)
    assert removed == retention.Removed(histories=1, checkpoints=1, idempotency_keys=1)
    assert not storage.path(checkpoint.sha256).exists()
    with database.read() as session:
        assert session.get_one(JobRecord, job.id).checkpoint is None
        assert session.scalar(select(func.count()).select_from(Metric)) == 0
        assert set(session.scalars(select(Event.kind))) == {"state"}
    assert {found.grade for found in examine(settings, deep=True)} == {Grade.OK}
