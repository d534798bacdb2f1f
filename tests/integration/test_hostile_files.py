"""Every hostile file goes through the real jailed reader: it is refused in words, and nothing else happens."""

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.contract.errors import InputRejected
from service.contract.settings import Settings
from service.contract.specs import ModelDeclaration
from tests.integration import hostile_reader
from tests.unit.formats.declared import UPLOAD, declare_dataset, declare_model
from tests.unit.formats.hostile_files import FILES, READ, Hostile, Trap
from workers import reader
from workers.child import Child
from workers.jail import kernel, seccomp

SECONDS = 10  # of CPU, and the kernel ends a reader that takes more
GROWTH = 2 * 2**30  # bytes of memory beyond those with which the reader starts
GENERAL = {"input_rejected", "internal"}  # codes of what nobody foresaw


@dataclass(frozen=True)
class Outcome:
    """What a reader said, and what it did."""

    code: str
    detail: str
    usage: dict[str, Any]


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield Trap(tmp_path / "marker", server.getsockname()[1])
        with pytest.raises(BlockingIOError):  # nobody has dialled
            server.accept()
    assert not (tmp_path / "marker").exists()


def declared(file: str) -> Any:
    if file == "model.pt2":
        return ModelDeclaration.model_validate({"name": "m", "files": {file: UPLOAD}})
    return declare_dataset(file) if file.startswith(("data.", "images.")) else declare_model(file)


def order_for(folder: Path, hostile: Hostile) -> reader.ReadOrder:
    """Defaults of a deployment, but for the time."""
    settings = Settings(data_dir=folder / "data")
    for name in ("files", "out", "scratch"):
        (folder / name).mkdir()
    return reader.ReadOrder(
        kind="model" if hostile.kind == "model" else "dataset", folder=folder / "files", out=folder / "out",
        declaration=declared(hostile.file).model_dump(mode="json"), scratch=folder / "scratch",
        memory_bytes=settings.reader_memory_bytes, cpu_seconds=SECONDS, max_bytes=settings.max_dataset_bytes,
        log_level="info", log_format="text",
    )  # fmt: skip


def read(order: reader.ReadOrder, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """As an inspection does, with the watched reader in the place of the plain one."""

    class Watched(Child):
        def __init__(self, _entry: str, *arguments: Any, **options: Any) -> None:
            super().__init__("tests.integration.hostile_reader:read", *arguments, **options)

    monkeypatch.setattr(reader, "Child", Watched)
    try:
        facts, why = reader._attempt(order, lambda: None)
        assert facts is not None, why
        code, detail = READ, ""
    except InputRejected as error:
        code, detail = error.fault().code, error.fault().detail
    told = order.scratch / hostile_reader.USAGE
    return Outcome(code, detail, json.loads(told.read_text()) if told.exists() else {})


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder but what the reader may write: sizes and times of change."""
    found = (path for path in folder.rglob("*") if not {"out", "scratch"} & set(path.relative_to(folder).parts))
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_in_words_and_does_nothing(
    name: str, tmp_path: Path, trap: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = FILES[name]
    order = order_for(tmp_path, hostile)
    hostile.build(order.folder / hostile.file, trap)
    before = contents(tmp_path)
    outcome = read(order, monkeypatch)
    assert contents(tmp_path) == before
    assert outcome.usage, f"the reader died: {outcome.detail}"
    assert outcome.usage["attempts"] == []
    assert outcome.code in hostile.codes, outcome.detail
    assert outcome.usage["cpu_seconds"] < SECONDS
    assert outcome.usage["grown_bytes"] < GROWTH
    if seccomp.offered(kernel.architecture()):
        assert outcome.usage["seccomp"] == 2
    if outcome.code != READ:
        assert outcome.code not in GENERAL
        assert len(outcome.detail) > 40
        assert hostile.words in outcome.detail
        assert outcome.detail.isascii() or outcome.detail.replace("\n", "").isprintable()


def test_the_trap_is_a_real_one(tmp_path: Path) -> None:
    """Unpickled without a reader it makes the folder and dials."""
    import pickle

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        trap = Trap(tmp_path / "marker", server.getsockname()[1])
        for line in pickle.loads(trap.pickled())[1:]:
            line.close()
        server.accept()[0].close()
    assert trap.marker.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_the_watch_sees_what_a_file_must_not_try(tmp_path: Path) -> None:
    """As root or not: a hook that saw nothing would make every test above pass."""
    order = order_for(tmp_path, FILES["object_array"])
    script = (
        "import sys, json, socket, os, pickle\n"
        "from tests.integration import hostile_reader\nfrom workers import reader\n"
        "seen = []\nhostile_reader.watch(reader.ReadOrder.model_validate_json(sys.argv[1]), seen)\n"
        "open('/etc/passwd').close()\nos.system('true')\npickle.loads(pickle.dumps(os.mkdir))\nprint(json.dumps(seen))\n"
    )
    import subprocess
    import sys

    command = [sys.executable, "-c", script, order.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    seen = json.loads(done.stdout)
    assert [line.split()[0] for line in seen] == ["open", "os.system", "pickle.find_class"]
