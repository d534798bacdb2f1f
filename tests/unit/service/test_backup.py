"""A backup comes back byte by byte, or not at all; the archive is trusted in nothing."""

import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, text, update

from service import backup
from service.backup import back_up
from service.contract import contents, jobs, resources
from service.contract.database import Database
from service.contract.errors import Conflict, DigestMismatch, Invalid, StillhouseError
from service.contract.migrate import migrate
from service.contract.records import Event, JobRecord, JobState, WorkerRecord
from service.contract.settings import Settings
from service.contract.specs import DatasetDeclaration, DistillSpec, ModelDeclaration
from service.contract.storage import LocalStorage, StoredFile, open_storage
from service.doctor.examination import examine
from service.doctor.findings import Grade
from service.restoring import restore

UPLOAD = "upl_" + 26 * "0"
STUDENT = {"architecture": {"name": "resnet8"}}


class Folder:
    """A data folder."""

    def __init__(self, data: Path) -> None:
        self.settings = Settings(data_dir=data, min_free_bytes=0)
        self.storage: LocalStorage = open_storage(self.settings.storage)
        migrate(self.settings.database)
        self.database = Database(self.settings.database)
        self.scratch = data.parent / f"{data.name}-scratch"

    def put(self, content: str) -> StoredFile:
        self.scratch.write_text(content)
        return self.storage.put(self.scratch)

    def register(self, declaration: ModelDeclaration | DatasetDeclaration, content: str, *, ready: bool = True) -> str:
        file = self.put(content)
        with self.database.write() as session:
            made = resources.register(session, "ada", declaration, {"data": file}).id
            claim = resources.claim_inspection(session, made, "inspector", 30)
            assert claim is not None
            if ready:
                resources.accept(session, claim, {})
        return made

    def running_job(self, checkpoint: str) -> str:
        teacher = self.register(ModelDeclaration(name="teacher", files={"model.safetensors": UPLOAD}), "weights")
        dataset = self.register(DatasetDeclaration(name="digits", files={"data.npz": UPLOAD}), "arrays")
        fields = {"type": "distill", "teacher": teacher, "dataset": dataset, "student": STUDENT}
        file = self.put(checkpoint)
        with self.database.write() as session:
            made = jobs.submit(session, "ada", DistillSpec.model_validate(fields)).id
            claim = jobs.claim(session, made, "wrk_1", 30)
            assert claim is not None
            jobs.start(session, claim)
            jobs.report_checkpoint(session, claim, {"sha256": file.sha256, "size": file.size, "step": 7})
        return made

    def job(self, job_id: str) -> JobRecord:
        with self.database.read() as session:
            return session.get_one(JobRecord, job_id)


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("STILLHOUSE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path / "data")
    yield folder
    folder.database.close()


@pytest.fixture
def archive(folder: Folder, tmp_path: Path) -> Path:
    folder.running_job("checkpoint")
    back_up(folder.settings, tmp_path / "b.tar")
    return tmp_path / "b.tar"


def opened(data: Path) -> Folder:
    folder = Folder(data)
    folder.database.close()
    return folder


def test_a_restored_folder_has_the_same_files_and_rows_and_nothing_is_wrong_with_it(
    folder: Folder, tmp_path: Path
) -> None:
    job_id = folder.running_job("checkpoint")
    manifest = back_up(folder.settings, tmp_path / "b.tar")
    restored = restore(tmp_path / "b.tar", tmp_path / "new")
    there = opened(tmp_path / "new")
    names = {path.name for path in folder.storage.root.rglob("*") if path.is_file()}
    assert {path.name for path in there.storage.root.rglob("*") if path.is_file()} == names == set(manifest.files)
    assert restored.counts == {"models": 1, "datasets": 1, "jobs": 1}
    assert there.job(job_id).checkpoint == folder.job(job_id).checkpoint
    found = examine(there.settings.model_copy(update={"min_free_bytes": 0}), deep=True)
    assert [each for each in found if each.grade != Grade.OK] == []
    assert (tmp_path / "b.tar").stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "data", "data-scratch", "new"]
    assert list(folder.storage.incoming.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "becomes"),
    [(None, JobState.QUEUED), (jobs.pause, JobState.PAUSED), (jobs.cancel, JobState.CANCELLED)],
)
def test_a_job_that_ran_returns_to_the_queue_without_losing_an_attempt(
    folder: Folder, tmp_path: Path, asked: object, becomes: JobState
) -> None:
    job_id = folder.running_job("checkpoint")
    pending = folder.register(ModelDeclaration(name="m", files={"model.safetensors": UPLOAD}), "more", ready=False)
    with folder.database.write() as session:
        session.add(WorkerRecord(id="wrk_1", queue="jobs", facts={}))
        session.execute(update(JobRecord).values(losses=2))
        if callable(asked):
            asked(session, session.get_one(JobRecord, job_id))
    back_up(folder.settings, tmp_path / "b.tar")
    assert restore(tmp_path / "b.tar", tmp_path / "new").given_back == [job_id]
    there = opened(tmp_path / "new")
    job = there.job(job_id)
    assert (job.state, job.losses, job.attempt, job.lease_until) == (becomes, 2, 1, None)
    with there.database.read() as session:
        assert session.scalars(select(WorkerRecord)).all() == []
        assert resources.waiting_inspections(session) == [pending]
        told = session.scalars(select(Event.data).where(Event.kind == "state").order_by(Event.id.desc())).first()
    assert told is not None
    assert told["state"] == becomes
    there.database.close()
    assert folder.job(job_id).state in {"running", "pausing", "cancelling"}  # the first service is as it was


def test_what_is_let_go_while_the_backup_is_made_is_in_it_all_the_same(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.running_job("checkpoint")
    model = folder.register(ModelDeclaration(name="m", files={"model.safetensors": UPLOAD}), "only here")
    digest = folder.put("only here").sha256
    copy, deleting = backup._copy_database, []

    def remove() -> None:
        with folder.database.write() as session:
            digests = resources.remove(session, model, jobs.UNFINISHED)
        contents.release(folder.database, folder.storage, digests)

    def copied(settings: Settings, target: Path) -> None:
        deleting.append(threading.Thread(target=remove))
        deleting[0].start()
        deleting[0].join(0.3)  # it waits for its turn to write
        copy(settings, target)

    monkeypatch.setattr(backup, "_copy_database", copied)
    manifest = back_up(folder.settings, tmp_path / "b.tar")
    deleting[0].join()
    assert not folder.storage.path(digest).exists()
    assert digest in manifest.files
    assert manifest.damaged == ()
    assert restore(tmp_path / "b.tar", tmp_path / "new").counts["models"] == 2


def test_what_nobody_names_is_not_backed_up(folder: Folder, tmp_path: Path) -> None:
    orphan = folder.put("orphan").sha256
    assert orphan not in back_up(folder.settings, tmp_path / "b.tar").files


def test_a_damaged_and_a_missing_file_are_told_and_the_rest_is_saved(folder: Folder, tmp_path: Path) -> None:
    folder.running_job("checkpoint")
    missing, damaged = folder.put("weights").sha256, folder.put("arrays").sha256
    folder.storage.delete(missing)
    folder.storage.path(damaged).chmod(0o600)
    folder.storage.path(damaged).write_text("arrayz")
    manifest = back_up(folder.settings, tmp_path / "b.tar")
    assert set(manifest.damaged) == {missing, damaged}
    assert list(manifest.files) == [folder.put("checkpoint").sha256]
    restored = restore(tmp_path / "b.tar", tmp_path / "new")
    assert set(restored.manifest.damaged) == {missing, damaged}
    assert not opened(tmp_path / "new").storage.path(damaged).exists()


def test_an_archive_is_not_written_over_and_a_folder_not_restored_into(folder: Folder, tmp_path: Path) -> None:
    back_up(folder.settings, tmp_path / "b.tar")
    with pytest.raises(Conflict, match="exists"):
        back_up(folder.settings, tmp_path / "b.tar")
    with pytest.raises(Conflict, match="not empty"):
        restore(tmp_path / "b.tar", tmp_path / "data")
    assert restore(tmp_path / "b.tar", tmp_path / "new").counts["jobs"] == 0


def test_only_the_embedded_default_is_backed_up(folder: Folder, tmp_path: Path) -> None:
    other = folder.settings.model_copy(update={"database_url": None})
    other.__dict__["database"] = "postgresql://localhost/stillhouse"
    with pytest.raises(Invalid, match="pg_dump"):
        back_up(other, tmp_path / "b.tar")


# Archives that are not what they should be -------------------------------------------------------


def members(archive: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(archive) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def rewritten(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for member, content in entries:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def refused(archive: Path, kind: type[StillhouseError]) -> str:
    """Restore what must be refused; nothing is left of it, and nothing lies beside it."""
    new = archive.parent / "new" / "data"
    new.parent.mkdir()
    with pytest.raises(kind) as caught:
        restore(archive, new)
    assert list(new.iterdir()) == []
    assert list(new.parent.iterdir()) == [new]
    return str(caught.value)


def entry(name: str, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


@pytest.mark.parametrize(
    "intruder",
    [
        entry("../../outside"),
        entry("/tmp/outside"),
        entry("files/../../outside"),
        entry("files/aa/" + "b" * 64),
        entry("files/ab/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("stillhouse.db", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("files/ab/" + "ab" * 32, type=tarfile.LNKTYPE, linkname="../../outside"),
        entry("fifo", type=tarfile.FIFOTYPE),
        entry("files", type=tarfile.DIRTYPE),
        entry("stillhouse.db"),
        entry("lock"),
    ],
    ids=lambda member: f"{member.name}-{member.type.decode()}",
)
def test_a_member_that_no_backup_has_is_refused(archive: Path, intruder: tarfile.TarInfo) -> None:
    entries = members(archive)
    said = refused(rewritten(archive, [entries[0], (intruder, b""), *entries[1:]]), Invalid)
    assert "does not belong" in said


def test_a_flipped_bit_in_a_content_or_in_the_database_is_refused(archive: Path) -> None:
    entries = members(archive)
    changed = [(member, content[:-1] + bytes([content[-1] ^ 1])) for member, content in entries[:2]]
    said = refused(rewritten(archive.with_name("content.tar"), [entries[0], changed[1], *entries[2:]]), DigestMismatch)
    assert changed[1][0].name[-64:] in said
    with pytest.raises(DigestMismatch, match="database"):
        restore(rewritten(archive.with_name("db.tar"), [changed[0], *entries[1:]]), archive.parent / "other")


def test_a_missing_content_is_refused_even_if_the_manifest_does_not_miss_it(archive: Path) -> None:
    entries = members(archive)
    manifest = json.loads(entries[-1][1])
    del manifest["files"][entries[1][0].name[-64:]]
    forged = (entries[-1][0], json.dumps(manifest).encode())
    assert "lacks 1 files" in refused(rewritten(archive, [entries[0], *entries[2:-1], forged]), DigestMismatch)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_an_archive_that_was_cut_off_is_refused(archive: Path, share: float) -> None:
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    assert "cut off" in refused(archive, Invalid)


def test_something_else_than_an_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(os.urandom(5000))
    assert "cannot be read as a tar file" in refused(tmp_path / "b.tar", Invalid)


def test_a_backup_of_a_newer_version_is_refused(folder: Folder, tmp_path: Path) -> None:
    with folder.database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = 'f00d'"))
    back_up(folder.settings, tmp_path / "b.tar")
    assert "newer" in refused(tmp_path / "b.tar", Conflict)
