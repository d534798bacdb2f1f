import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from service.contract.errors import InputRejected, NotFound
from service.contract.settings import Settings
from service.contract.storage import LocalStorage, StoredFile
from workers import reader
from workers.child import Child
from workers.students.architectures import build

UPLOAD = "upl_" + 26 * "0"
Read = Callable[..., tuple[Path, dict[str, Any]]]


class House:
    """A storage and settings, and what to read from them."""

    def __init__(self, folder: Path, **fields: Any) -> None:
        self.folder = folder
        self.settings = Settings(data_dir=folder / "data", **fields)
        self.storage = LocalStorage(folder / "files")

    def put(self, name: str, content: bytes) -> dict[str, StoredFile]:
        path = self.folder / name
        path.write_bytes(content)
        return {name: self.storage.put(path)}

    def model(self, hidden: int = 4, **declared: Any) -> tuple[dict[str, Any], dict[str, StoredFile]]:
        network = build("mlp", {"hidden": [hidden]}, input_shape=(4,), num_classes=2, seed=0)
        architecture = {"name": "mlp", "options": {"input_shape": [4], "num_classes": 2, "hidden": [hidden]}}
        declaration = {"name": "m", "files": {reader.WEIGHTS: UPLOAD}, "architecture": architecture, **declared}
        return declaration, self.put(reader.WEIGHTS, safetensors.torch.save(network.state_dict()))

    def dataset(self) -> tuple[dict[str, Any], dict[str, StoredFile]]:
        buffer = io.BytesIO()
        np.savez(buffer, x=np.arange(400, dtype=np.float32).reshape(100, 4), y=np.arange(100) % 2)
        return {"name": "d", "files": {"data.npz": UPLOAD}}, self.put("data.npz", buffer.getvalue())

    def read(self, kind: reader.Kind, found: tuple[dict[str, Any], dict[str, StoredFile]], **options: Any) -> Any:
        return reader.canonical(self.storage, self.settings, kind, *found, **options)

    def entries(self) -> list[str]:
        cache = self.settings.cache_dir
        return sorted(path.name for path in cache.iterdir() if path.name not in {"locks", "incoming"})


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The process ids of the readers that are started."""
    started: list[int] = []

    class Noted(Child):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self.process.pid or 0)

    monkeypatch.setattr(reader, "Child", Noted)
    return started


def killing(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, times: int) -> list[int]:
    """Have the first readers receive a signal as soon as they are there."""
    killed: list[int] = []

    class Doomed(Child):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            if len(killed) < times and self.process.pid:
                killed.append(self.process.pid)
                os.kill(self.process.pid, number)

    monkeypatch.setattr(reader, "Child", Doomed)
    return killed


def test_a_model_and_a_dataset_become_canonical(house: House) -> None:
    folder, facts = house.read("model", house.model())
    assert facts["parameters"] == 4 * 4 + 4 + 4 * 2 + 2
    assert (folder / "model.safetensors").exists()
    folder, facts = house.read("dataset", house.dataset())
    assert any(folder.iterdir())
    assert len(house.entries()) == 2
    assert list((house.settings.cache_dir / "incoming").iterdir()) == []


def test_the_same_content_is_read_once_whatever_it_is_called(house: House, children: list[int]) -> None:
    first = house.read("model", house.model())
    again = house.read("model", house.model(name="another name", labels={"a": "b"}))
    assert again == first
    assert len(children) == 1


def test_another_declaration_is_read_anew(house: House, children: list[int]) -> None:
    declaration, files = house.dataset()
    house.read("dataset", (declaration, files))
    house.read("dataset", (declaration | {"splits": {"seed": 1}}, files))
    assert len(children) == 2
    assert len(house.entries()) == 2


def test_the_weights_of_what_a_job_made_are_read_like_anybodys(house: House) -> None:
    declaration, files = house.model()
    del declaration["files"]
    card = house.put("README.md", b"# card")
    _, facts = house.read("model", (declaration, files | card))
    assert facts["parameters"] == 30


def test_what_is_wrong_is_told_with_its_code_and_nothing_is_cached(house: House) -> None:
    declaration, _ = house.model()
    with pytest.raises(InputRejected) as caught:
        house.read("model", (declaration, house.put(reader.WEIGHTS, b"no tensors")))
    assert caught.value.fault().code != "internal"
    assert house.entries() == []
    assert list((house.settings.cache_dir / "incoming").iterdir()) == []


def test_a_file_that_is_not_stored_is_not_found(house: House) -> None:
    declaration, _ = house.model()
    with pytest.raises(NotFound):
        house.read("model", (declaration, {reader.WEIGHTS: StoredFile("0" * 64, 1)}))


def test_a_reader_that_somebody_killed_is_started_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = killing(monkeypatch, signal.SIGKILL, times=2)
    _, facts = house.read("model", house.model())
    assert facts["parameters"] == 30
    assert len(killed) == 2


def test_a_reader_that_is_killed_every_time_rejects_its_files(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = killing(monkeypatch, signal.SIGKILL, times=100)
    with pytest.raises(InputRejected, match="killed the reader 3 times"):
        house.read("model", house.model())
    assert len(killed) == 3


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGXCPU, "STILLHOUSE_READER_SECONDS"),
        (signal.SIGABRT, "STILLHOUSE_READER_MEMORY_BYTES"),
        (signal.SIGSEGV, "SIGSEGV"),
    ],
)
def test_a_reader_that_died_of_its_files_says_why(
    house: House, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, words: str
) -> None:
    killing(monkeypatch, number, times=1)
    with pytest.raises(InputRejected, match=words):
        house.read("model", house.model())


def test_files_that_need_too_much_memory_are_rejected_with_the_limit(tmp_path: Path) -> None:
    house = House(tmp_path, reader_memory_bytes=64 << 20)
    declaration, _ = house.model()
    large = safetensors.torch.save({"fc1.weight": torch.zeros(32 << 20)})  # 128 MiB
    with pytest.raises(InputRejected, match="64 MiB, STILLHOUSE_READER_MEMORY_BYTES"):
        house.read("model", (declaration, house.put(reader.WEIGHTS, large)))


def test_a_reading_can_be_interrupted_and_leaves_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = killing(monkeypatch, signal.SIGSTOP, times=1)

    def check() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        house.read("model", house.model(), check=check)
    assert list((house.settings.cache_dir / "incoming").iterdir()) == []
    assert not Path(f"/proc/{frozen[0]}").exists()
