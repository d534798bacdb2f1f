"""The reading child in its jail: honest files of every kind are read, and hostile ones reach nothing."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from structlog.testing import capture_logs

from service.contract.errors import InputRejected, Unavailable
from service.contract.specs import ModelDeclaration
from tests.architectures import exported, specimen
from tests.unit.formats.declared import UPLOAD, declare_dataset, declare_model, read_dataset_in, read_model_in
from tests.unit.formats.test_pictures import encoded, zipped
from tests.unit.workers import labourer
from workers import reader
from workers.child import Child
from workers.formats.datasets import load_dataset
from workers.formats.models import load_model
from workers.jail import kernel, landlock, probe, seccomp
from workers.jail.jail import Cell
from workers.limits import GIB, Limits
from workers.pipe import Read
from workers.students.architectures import build

CLOSED = landlock.offer()[0] >= 6 and seccomp.offered(kernel.architecture())
needs_all_layers = pytest.mark.skipif(not CLOSED, reason="this kernel offers no Landlock with signals, or no seccomp")
BOUNDS = Limits(4 * GIB, 60, 1 << 30)
RNG = np.random.default_rng(0)


def imprisoned(entry: str, order: str, readable: Path, scratch: Path) -> dict[str, Any]:
    """What an entry tells from a cell."""
    child = Child(entry, order, cell=Cell((readable,), (), scratch, BOUNDS))
    try:
        word = child.receive(60)
        assert isinstance(word, Read), word
        return word.facts
    finally:
        child.end()


def ordered(kind: reader.Kind, folder: Path, declaration: Any, memory_bytes: int = 4 * GIB) -> reader.ReadOrder:
    (out := folder / "jailed").mkdir()
    (scratch := folder / "scratch").mkdir()
    return reader.ReadOrder(
        kind=kind, folder=folder / "files", declaration=declaration.model_dump(mode="json"), out=out, scratch=scratch,
        memory_bytes=memory_bytes, cpu_seconds=60, max_bytes=1 << 26, log_level="info", log_format="text",
    )  # fmt: skip


def read_in_jail(kind: reader.Kind, folder: Path, declaration: Any) -> dict[str, Any]:
    facts, why = reader._attempt(ordered(kind, folder, declaration), lambda: None)
    assert facts is not None, why
    return facts


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The folder of the uploaded files."""
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def save_npz(folder: Path) -> str:
    np.savez_compressed(folder / "data.npz", x=RNG.integers(0, 255, (40, 1, 8, 8), np.uint8), y=np.arange(40) % 4)
    return "data.npz"


def save_tensors(folder: Path) -> str:
    arrays: dict[str, np.ndarray[Any, Any]] = {"x": RNG.normal(size=(40, 6)).astype(np.float32), "y": np.arange(40) % 4}
    safetensors.numpy.save_file(arrays, folder / "data.safetensors")
    return "data.safetensors"


def save_table(folder: Path) -> str:
    columns = {"a": RNG.normal(size=40), "b": RNG.normal(size=40), "y": np.arange(40) % 4}
    pq.write_table(pa.table(columns), folder / "data.parquet", row_group_size=7)
    return "data.parquet"


def save_pictures(folder: Path) -> str:
    pixels = RNG.integers(0, 256, (20, 6, 5, 3)).astype(np.uint8)
    forms = ["PNG", "JPEG"]
    zipped(
        folder, {f"{'ab'[i % 2]}/{i}.{forms[i % 2].lower()}": encoded(p, forms[i % 2]) for i, p in enumerate(pixels)}
    )
    return "images.zip"


@pytest.mark.parametrize("save", [save_npz, save_tensors, save_table, save_pictures])
def test_datasets_of_every_kind_are_read_in_the_jail_as_outside(files: Path, save: Callable[[Path], str]) -> None:
    declaration = declare_dataset(name := save(files))
    facts = read_in_jail("dataset", files.parent, declaration)
    expected, free = read_dataset_in(files, name)
    assert facts == json.loads(json.dumps(expected))
    jailed, outside = load_dataset(files.parent / "jailed"), load_dataset(free)
    assert jailed.num_classes == outside.num_classes
    for path in free.glob("*.npy"):
        np.testing.assert_array_equal(np.load(files.parent / "jailed" / path.name), np.load(path))


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "old.pth"])
def test_models_of_every_kind_are_read_in_the_jail_as_outside(files: Path, name: str) -> None:
    model = build("resnet8", {}, input_shape=[1, 16, 16], num_classes=7, seed=1).eval()
    if name == "model.safetensors":
        safetensors.torch.save_file(model.state_dict(), files / name)
    else:
        torch.save({"state_dict": model.state_dict()}, files / name, _use_new_zipfile_serialization=name == "model.pt")
    declaration = declare_model(name, "resnet8", input_shape=[1, 16, 16], num_classes=7)
    facts = read_in_jail("model", files.parent, declaration)
    expected, _ = read_model_in(files, declaration)
    assert facts == json.loads(json.dumps(expected))
    assert len(facts["units"]["groups"]) == 6  # so torch.export works in the jail
    assert list((files.parent / "scratch").iterdir()) == []
    x = torch.randn(3, 1, 16, 16)
    assert torch.equal(load_model(files.parent / "jailed")(x), model(x))


def test_exported_networks_are_read_in_the_jail_as_outside(files: Path) -> None:
    (files / "model.pt2").write_bytes(exported("vit").read_bytes())
    declaration = ModelDeclaration.model_validate({"name": "m", "files": {"model.pt2": UPLOAD}})
    facts = read_in_jail("model", files.parent, declaration)
    expected, _ = read_model_in(files, declaration)
    assert facts == json.loads(json.dumps(expected))
    assert {"heads", "head width", "channels"} == {group["kind"] for group in facts["units"]["groups"]}


def test_a_network_whose_graph_the_jail_has_no_room_for_is_read_without_its_units(files: Path) -> None:
    model = build("resnet8", {}, input_shape=[1, 16, 16], num_classes=7, seed=1)
    safetensors.torch.save_file(model.state_dict(), files / "model.safetensors")
    declaration = declare_model("model.safetensors", "resnet8", input_shape=[1, 16, 16], num_classes=7)
    order = ordered("model", files.parent, declaration)
    largest = (files / "model.safetensors").stat().st_size + 4096  # bytes of one file: enough for the weights alone
    facts, why = reader._attempt(order.model_copy(update={"max_bytes": largest}), lambda: None)
    assert facts is not None, why
    assert facts["units"] is None
    assert len(facts["notes"]) == 1
    assert "its units are not known" in facts["notes"][0]
    assert facts["parameters"] == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("name", ["resnet8"])
def test_exported_networks_are_read_and_computed_in_the_jail(tmp_path: Path, files: Path, name: str) -> None:
    network, inputs = specimen(name)
    (files / "model.pt2").write_bytes(Path(exported(name)).read_bytes())
    np.save(files / "x.npy", inputs[0].numpy())
    order = json.dumps({"archive": str(files / "model.pt2"), "x": str(files / "x.npy")})
    facts = imprisoned("tests.unit.workers.labourer:read_archive", order, files, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(facts["y"]), network.eval()(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(labourer.WORK))
def test_libraries_work_on_several_threads_in_the_jail(tmp_path: Path, name: str) -> None:
    facts = imprisoned("tests.unit.workers.labourer:labour", name, tmp_path, tmp_path)
    before = torch.get_num_threads()
    try:
        assert facts[name] == pytest.approx(labourer.WORK[name]())
    finally:
        torch.set_num_threads(before)


@needs_all_layers
def test_a_second_thread_is_in_the_jail_too_and_finds_no_secrets(tmp_path: Path, files: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (files / "given").write_text("given")
    order = json.dumps(["/etc/passwd", str(tmp_path / "secret"), str(files / "given")])
    facts = imprisoned("tests.unit.workers.labourer:threads_and_files", order, files, files)
    assert facts == {"secrets": False, "opens": [False, False, True]}


class Payload:
    """Unpickling it makes a file, outside the reader's folders."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def test_a_checkpoint_with_code_is_refused_and_does_nothing(tmp_path: Path, files: Path) -> None:
    torch.save({"state_dict": Payload(tmp_path / "marker")}, files / "model.pt")
    with pytest.raises(InputRejected):
        read_in_jail("model", tmp_path, declare_model("model.pt"))
    assert not (tmp_path / "marker").exists()


@needs_all_layers
def test_a_reader_that_ran_code_from_a_file_would_reach_nothing(tmp_path: Path, files: Path) -> None:
    """As if a library under the readers had a hole."""
    for name, payload, ends in [
        ("folder", Payload(tmp_path / "marker"), {"PermissionError"}),
        ("shell", Shell(tmp_path / "marker"), {"-1", str(127 << 8)}),  # system(3): no process, or no shell
    ]:
        (files / name).write_bytes(pickle.dumps(payload))
        facts = imprisoned("tests.unit.workers.labourer:unpickle", str(files / name), files, files)
        assert facts["ended"] in ends
        assert not (tmp_path / "marker").exists()


class Shell(Payload):
    """Unpickling it runs a shell that makes the file."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"mkdir {self.marker}",)


def test_a_child_that_cannot_be_jailed_reads_nothing(tmp_path: Path, files: Path) -> None:
    order = ordered("dataset", tmp_path, declare_dataset(save_npz(files)), memory_bytes=1 << 70)
    with pytest.raises(Unavailable, match="jail"):
        reader._attempt(order, lambda: None)
    assert list((tmp_path / "jailed").iterdir()) == []


@needs_all_layers
def test_the_probe_says_that_everything_is_refused() -> None:
    facts = probe.in_force()
    assert facts.pop("landlock") == f"ABI {landlock.offer()[0]}"
    assert facts.pop("seccomp") == f"allow-list, {kernel.architecture()}"
    assert facts == dict.fromkeys([*probe.HELD, *probe.ATTEMPTS], True)


def test_the_probe_sees_what_is_not_refused(tmp_path: Path) -> None:
    """The same attempts, without a jail."""
    (outside := tmp_path / "outside").write_text("not a program")
    outside.chmod(0o700)
    child = Child("workers.jail.probe:try_to_get_out", str(outside))
    try:
        word = child.receive(30)
    finally:
        child.end()
    assert isinstance(word, Read)
    assert {name for name in probe.ATTEMPTS if word.facts[name]} == set()
    assert word.facts["no_new_privileges"] is False


def test_a_kernel_without_the_layers_is_announced_as_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "offer", lambda: (0, "this kernel was built without it"))
    monkeypatch.setattr(seccomp, "offered", lambda _: False)
    facts = {**probe._layers(), "refuses_files": False, "limits": True}
    with capture_logs() as lines:
        probe.announce(facts)
    assert lines[0]["log_level"] == "warning"
    assert lines[0]["missing"] == ["landlock", "seccomp", "refuses_files"]
    assert lines[0]["landlock"] == "not offered: this kernel was built without it"
