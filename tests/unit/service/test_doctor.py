"""A data folder with every fault that the doctor knows, one at a time; what is found, how grave, and what is mended."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, text, update

from service import cli
from service.contract import jobs, resources
from service.contract.database import Database, clock
from service.contract.errors import Conflict
from service.contract.ids import new_id
from service.contract.migrate import migrate
from service.contract.records import JobRecord, ModelRecord, Upload, WorkerRecord
from service.contract.settings import Settings
from service.contract.specs import DatasetDeclaration, DistillSpec, ModelDeclaration
from service.contract.storage import LocalStorage, StoredFile, open_storage
from service.data_folder import exclusive
from service.doctor.examination import examine, is_healthy, is_served, mend
from service.doctor.findings import Finding, Grade

OLD = time.time() - 3 * 86400
UPLOAD = "upl_" + 26 * "0"
ROOT = os.geteuid() == 0


@dataclass
class Folder:
    """A data folder that is not served, and the means to break it."""

    settings: Settings
    database: Database
    storage: LocalStorage

    @property
    def data(self) -> Path:
        return self.settings.data_dir

    def put(self, content: str, *, old: bool = False) -> StoredFile:
        path = self.data / "logs" / "content"
        path.write_text(content)
        stored = self.storage.put(path)
        if old:
            os.utime(self.storage.path(stored.sha256), (OLD, OLD))
        return stored

    def register(self, declaration: ModelDeclaration | DatasetDeclaration, content: str) -> str:
        file = self.put(content)
        with self.database.write() as session:
            made = resources.register(session, "ada", declaration, {"data": file}).id
            claim = resources.claim_inspection(session, made, "inspector", 30)
            assert claim is not None
            resources.accept(session, claim, {})
        return made

    def job(self) -> str:
        teacher = self.register(ModelDeclaration(name="teacher", files={"model.safetensors": UPLOAD}), "weights")
        dataset = self.register(DatasetDeclaration(name="digits", files={"data.npz": UPLOAD}), "arrays")
        student = {"architecture": {"name": "resnet8"}}
        fields = {"type": "distill", "teacher": teacher, "dataset": dataset, "student": student}
        with self.database.write() as session:
            return jobs.submit(session, "ada", DistillSpec.model_validate(fields)).id

    def change(self, record: Any, row: str, **values: Any) -> None:
        with self.database.write() as session:
            session.execute(update(record).where(record.id == row).values(**values))

    def findings(self, *, deep: bool = False) -> dict[str, Finding]:
        """What is not as it should be, by the check that found it."""
        return {found.check: found for found in examine(self.settings, deep=deep) if found.grade != Grade.OK}

    def finding(self, check: str, *, deep: bool = False) -> Finding:
        (found,) = self.findings(deep=deep).values()
        assert found.check == check
        assert found.text
        assert found.advice
        return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    for name in [name for name in os.environ if name.startswith("STILLHOUSE_")]:
        monkeypatch.delenv(name)
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "logs").mkdir()
    settings = Settings(data_dir=data, min_free_bytes=0)
    storage = open_storage(settings.storage)
    migrate(settings.database)
    database = Database(settings.database)
    yield Folder(settings, database, storage)
    database.close()


def test_a_folder_in_order_has_nothing_but_good_findings_and_stays_as_it_is(folder: Folder) -> None:
    folder.job()
    before = {path: path.read_bytes() for path in folder.storage.root.rglob("*") if path.is_file()}
    found = examine(folder.settings, deep=True)
    assert {each.grade for each in found} == {Grade.OK}
    assert {path: path.read_bytes() for path in folder.storage.root.rglob("*") if path.is_file()} == before


def test_a_file_that_is_gone_is_named_with_what_it_belongs_to(folder: Folder) -> None:
    model = folder.register(ModelDeclaration(name="m", files={"model.safetensors": UPLOAD}), "weights")
    folder.storage.delete(folder.put("weights").sha256)
    found = folder.finding("files")
    assert found.grade == Grade.ERROR
    assert found.subjects[0].startswith(f"{model}/data: is not in the storage")


def test_a_shorter_file_is_found_by_its_size_and_a_flipped_bit_by_its_hash(folder: Folder) -> None:
    folder.register(ModelDeclaration(name="m", files={"model.safetensors": UPLOAD}), "weights")
    path = folder.storage.path(folder.put("weights").sha256)
    path.chmod(0o600)
    path.write_text("weighty")
    assert folder.findings() == {}
    assert "another SHA-256" in folder.finding("files", deep=True).subjects[0]
    path.write_text("wei")
    assert "has 3 bytes in place of 7" in folder.finding("files").subjects[0]


def test_an_orphan_is_a_finding_after_a_day_and_is_mended(folder: Folder) -> None:
    folder.job()
    folder.put("young")
    assert folder.findings() == {}
    orphan = folder.put("old", old=True)
    assert folder.finding("orphans").subjects == (f"{orphan.sha256} (3 d)",)
    assert [path.name for path in mend(folder.settings)] == [orphan.sha256]
    assert {found.grade for found in examine(folder.settings, deep=True)} == {Grade.OK}


def test_what_a_crash_left_is_mended_and_what_a_process_holds_is_not(folder: Folder) -> None:
    names = ["put-0123456789abcdef", f"{new_id('upl')}.part"]
    for name in names:
        path = folder.storage.incoming / name
        path.write_text("half")
        os.utime(path, (OLD, OLD))
    held = folder.storage.incoming / "backup-0123456789abcdef"
    held.mkdir()
    os.utime(held, (OLD, OLD))
    (folder.data / "jobs" / "job_1-1").mkdir(parents=True)
    os.utime(folder.data / "jobs" / "job_1-1", (OLD, OLD))
    with held_by_a_process(held):
        assert sorted(path.name for path in mend(folder.settings)) == names
    assert held.exists()
    assert (folder.data / "jobs" / "job_1-1").exists()  # the workers' own sweep sees to it
    with held_by_a_process(held):
        assert (
            "1 folder of jobs" in [found for found in examine(folder.settings) if found.check == "leftovers"][-1].text
        )
    with held_by_a_process(folder.data / "jobs" / "job_1-1"):
        assert folder.finding("leftovers").subjects == (held.name,)


@contextmanager
def held_by_a_process(path: Path) -> Iterator[None]:
    """Hold a folder's lock as who works in it does."""
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


def test_a_lease_that_ran_out_long_ago_is_a_warning_at_rest_and_an_error_beside_a_service(folder: Folder) -> None:
    job_id = folder.job()
    with folder.database.write() as session:
        assert jobs.claim(session, job_id, "w1", 30) is not None
    assert folder.findings() == {}
    folder.change(JobRecord, job_id, lease_until=clock() - 7200)
    found = folder.finding("leases")
    assert (found.grade, found.subjects) == (Grade.WARNING, (f"{job_id} (for 2 h)",))
    with exclusive(folder.data):
        served = folder.findings()
    assert served["leases"].grade == served["workers"].grade == Grade.ERROR


def test_a_held_job_without_a_lease_is_an_error(folder: Folder) -> None:
    job_id = folder.job()
    folder.change(JobRecord, job_id, state="running")
    assert folder.finding("leases").subjects == (job_id,)


def test_a_job_whose_input_is_gone_is_an_error(folder: Folder) -> None:
    job_id = folder.job()
    with folder.database.write() as session:
        session.execute(delete(ModelRecord))
    assert folder.findings()["inputs"].subjects[0].startswith(f"{job_id} reads mdl_")


def test_a_paused_job_whose_checkpoint_is_gone_is_a_warning(folder: Folder) -> None:
    job_id = folder.job()
    there = folder.put("checkpoint")
    last = {"sha256": "c" * 64, "size": 1, "step": 9}
    previous = {"sha256": there.sha256, "size": there.size, "step": 5}
    folder.change(JobRecord, job_id, state="paused", checkpoint={**last, "previous": previous})
    found = folder.finding("checkpoints")
    assert found.grade == Grade.WARNING
    assert [subject.split(":")[0] for subject in found.subjects] == [f"{job_id} step 9"]


@pytest.mark.parametrize(("size", "words"), [(None, "lost bytes"), (4, "lost bytes"), (99, "never recorded")])
def test_an_upload_that_is_not_as_recorded_is_a_warning(folder: Folder, size: int | None, words: str) -> None:
    upload = new_id("upl")
    with folder.database.write() as session:
        session.add(Upload(id=upload, owner="ada", offset=10))
    if size is not None:
        (folder.storage.incoming / f"{upload}.part").write_bytes(b"x" * size)
    found = folder.finding("uploads")
    assert words in found.text
    assert found.subjects == (f"{upload}: {size or 0} bytes, 10 recorded",)


def test_workers_of_another_version_and_silent_ones_are_warnings(folder: Folder) -> None:
    with folder.database.write() as session:
        session.add(WorkerRecord(id="wrk_old", queue="jobs", facts={"version": "0.0.1", "host": "h"}))
    assert folder.finding("workers").subjects == ("wrk_old: 0.0.1 on h",)
    folder.change(WorkerRecord, "wrk_old", heartbeat_at=clock() - 600)
    assert folder.finding("workers").subjects == ("wrk_old (for 10 min)",)


def test_a_socket_that_nobody_listens_on_is_a_warning_at_rest_and_an_error_beside_a_service(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.data / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(folder.data / "run")  # its path may be too long for a socket
        listener.bind("valkey.sock")
    assert folder.finding("broker").grade == Grade.WARNING
    with exclusive(folder.data):
        assert is_served(folder.data)
        assert folder.finding("broker").grade == Grade.ERROR


def test_a_full_disk_is_an_error_and_an_open_folder_a_warning(folder: Folder) -> None:
    folder.data.chmod(0o755)
    assert folder.finding("permissions").grade == Grade.WARNING
    folder.data.chmod(0o700)
    folder.settings = folder.settings.model_copy(update={"min_free_bytes": 1 << 60})
    assert folder.finding("disk").grade == Grade.ERROR


def test_a_file_that_may_not_be_written_is_an_error(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = folder.data / "logs"
    logs.chmod(0o500)
    if ROOT:  # who may do everything, and is asked as if he were another
        monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != logs)
    assert folder.finding("permissions").grade == Grade.ERROR


@pytest.mark.parametrize(
    ("statement", "grade", "words"),
    [
        ("UPDATE alembic_version SET version_num = 'f00d'", Grade.ERROR, "newer version"),
        ("DROP TABLE alembic_version", Grade.ERROR, "no tables"),
        ("DROP TABLE metrics", Grade.ERROR, "by hand"),
    ],
)
def test_tables_of_another_version_end_the_examination_and_nothing_is_mended(
    folder: Folder, statement: str, grade: Grade, words: str
) -> None:
    orphan = folder.put("old", old=True)
    with folder.database.write() as session:
        session.execute(text(statement))
    found = folder.finding("schema")
    assert found.grade == grade
    assert words in found.text
    with pytest.raises(Conflict, match="not sound"):
        mend(folder.settings)
    assert folder.storage.size(orphan.sha256)


def test_a_damaged_database_is_found_and_nothing_is_mended(folder: Folder) -> None:
    for _ in range(20):
        folder.job()
    folder.database.close()
    path = folder.data / "stillhouse.db"
    content = bytearray(path.read_bytes())
    content[20 * 4096 : 24 * 4096] = bytes(4 * 4096)
    path.write_bytes(content)
    orphan = folder.put("old", old=True)
    found = examine(folder.settings)
    assert not is_healthy(found)
    assert {each.check for each in found} == {"schema", "integrity"}
    with pytest.raises(Conflict):
        mend(folder.settings)
    assert folder.storage.size(orphan.sha256)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["stillhouse", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_the_command_says_what_is_wrong_and_what_to_do(
    folder: Folder, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_MIN_FREE_BYTES", "0")
    folder.register(ModelDeclaration(name="m", files={"model.safetensors": UPLOAD}), "weights")
    orphan = folder.put("old", old=True)
    code, out, _ = run("doctor", "--data", folder.data)
    assert code == 0  # warnings are no reason to fail a script
    assert "warning  orphans: 1 content (3 bytes) that no row names" in out
    assert "→ --fix removes them" in out
    code, out, err = run("doctor", "--data", folder.data, "--fix", "--json")
    assert (code, json.loads(out)["removed"], err) == (0, [orphan.sha256], "")
    folder.storage.delete(folder.put("weights").sha256)
    code, out, _ = run("doctor", "--data", folder.data, "--json")
    said = json.loads(out)
    assert (code, said["healthy"]) == (1, False)
    assert [each["check"] for each in said["findings"] if each["grade"] == "error"] == ["files"]


def test_a_folder_that_is_not_there_is_a_wrong_command_and_is_not_made(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = run("doctor", "--data", tmp_path / "nowhere")
    assert code == 2
    assert "there is no data folder" in err
    assert not (tmp_path / "nowhere").exists()
