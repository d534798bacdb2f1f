import hashlib
from pathlib import Path

import pytest

from service.contract.errors import NotFound, Unavailable
from service.contract.storage import LocalStorage, hash_file, open_storage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "files")


def put(storage: LocalStorage, tmp_path: Path, content: bytes) -> str:
    source = tmp_path / "source"
    source.write_bytes(content)
    return storage.put(source).sha256


def test_what_was_put_is_read_back_under_its_digest(storage: LocalStorage, tmp_path: Path) -> None:
    content = bytes(range(256)) * 8192
    digest = put(storage, tmp_path, content)
    assert digest == hashlib.sha256(content).hexdigest()
    assert storage.size(digest) == len(content)
    assert b"".join(storage.read(digest)) == content
    assert b"".join(storage.read(digest, 100, 1_500_000)) == content[100:1_500_000]


def test_adopting_moves_the_file_without_a_second_copy(storage: LocalStorage, tmp_path: Path) -> None:
    arrived = storage.incoming / "upload"
    arrived.write_bytes(b"content")
    inode = arrived.stat().st_ino
    digest = hash_file(arrived).sha256
    storage.adopt(arrived, digest)
    assert not arrived.exists()
    assert storage.path(digest).stat().st_ino == inode


def test_the_same_content_is_stored_once(storage: LocalStorage, tmp_path: Path) -> None:
    assert put(storage, tmp_path, b"same") == put(storage, tmp_path, b"same")
    assert len([path for path in storage.root.rglob("*") if path.is_file()]) == 1


def test_a_missing_file_is_not_found(storage: LocalStorage) -> None:
    with pytest.raises(NotFound):
        storage.read("0" * 64)


def test_a_fetched_file_is_the_stored_one_and_read_only(storage: LocalStorage, tmp_path: Path) -> None:
    digest = put(storage, tmp_path, b"weights")
    destination = tmp_path / "model.safetensors"
    storage.fetch(digest, destination)
    assert destination.read_bytes() == b"weights"
    assert destination.stat().st_mode & 0o222 == 0


def test_a_name_that_is_no_digest_never_becomes_a_path(storage: LocalStorage) -> None:
    with pytest.raises(ValueError, match="not a SHA-256"):
        storage.path("../../etc/passwd")


def test_a_failed_write_leaves_nothing_behind(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("service.contract.storage.flush", full)
    with pytest.raises(Unavailable, match="No space left"):
        storage.put(source)
    assert [path for path in storage.root.rglob("*") if path.is_file()] == []


def test_only_file_urls_are_understood(tmp_path: Path) -> None:
    assert open_storage(f"file://{tmp_path}/with%20space").root == tmp_path / "with space"
    with pytest.raises(ValueError, match="file:///folder"):
        open_storage("s3://bucket")
