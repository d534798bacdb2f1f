"""What leaves: the same bytes each time, nothing of the machine in them, and the same function."""

import errno
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from service.contract.specs import Architecture
from workers.formats.artifacts import export_program, write_safetensors
from workers.formats.models import load_architecture, load_model
from workers.formats.verify import verify
from workers.students.architectures import build

pytestmark = pytest.mark.usefixtures("one_thread")

INPUTS = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    model = build("resnet8", {}, input_shape=[1, 8, 8], num_classes=3, seed=0)
    model(INPUTS)  # batch norms leave their initial statistics
    return model.eval()


def architecture() -> Architecture:
    return Architecture.model_validate({"name": "resnet8", "options": {"input_shape": [1, 8, 8], "num_classes": 3}})


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 3), nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a job writes it, with inputs and the outputs of the trained model."""
    folder = tmp_path_factory.mktemp("artifact")
    model = network()
    described = json.dumps(architecture().model_dump(mode="json"))
    write_safetensors(model, folder / "model.safetensors", {"architecture": described})
    export_program(model, INPUTS[:2], folder / "model.pt2")
    np.save(folder / "x.npy", INPUTS.numpy())
    np.save(folder / "y.npy", model(INPUTS).detach().numpy())
    return folder


def test_safetensors_are_read_by_the_library_with_their_metadata(tmp_path: Path) -> None:
    model = network()
    write_safetensors(model, tmp_path / "a.safetensors", {"b": "2", "a": "é"})
    torch.testing.assert_close(safetensors.torch.load_file(tmp_path / "a.safetensors"), dict(model.state_dict()))
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "a": "é", "b": "2"}


def test_the_same_weights_give_the_same_safetensors(tmp_path: Path) -> None:
    write_safetensors(network(), tmp_path / "a", {"a": "1", "b": "2"})
    write_safetensors(network(), tmp_path / "b", {"b": "2", "a": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_shared_tensors_are_written_once_and_shared_again(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    write_safetensors(model, tmp_path / "a.safetensors", {})
    assert sorted(safetensors.torch.load_file(tmp_path / "a.safetensors")) == [
        "decoder.bias", "decoder.weight", "encoder.bias",
    ]  # fmt: skip
    safetensors.torch.load_model(other, tmp_path / "a.safetensors")
    torch.testing.assert_close(other.state_dict(), model.state_dict())


def test_transposed_weights_are_written_row_by_row(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    model.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
    write_safetensors(model, tmp_path / "a.safetensors", {})
    assert torch.equal(safetensors.torch.load_file(tmp_path / "a.safetensors")["weight"], model.weight)


def test_an_exported_program_takes_any_batch(exported: Path) -> None:
    program = torch.export.load(exported / "model.pt2").module()
    wanted = torch.from_numpy(np.load(exported / "y.npy"))
    for batch in (1, 2, 5):
        torch.testing.assert_close(program(INPUTS[:batch]), wanted[:batch])


def test_an_exported_program_has_no_pickle_and_no_paths(exported: Path) -> None:
    data = (exported / "model.pt2").read_bytes()
    for private in (str(Path.cwd()), sys.prefix, str(Path(torch.__file__).parent), "site-packages", "stack_trace"):
        assert private.encode() not in data
    with zipfile.ZipFile(exported / "model.pt2") as archive:
        assert all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
        pickled = [member for member in archive.infolist() if member.filename.endswith((".pt", ".pkl"))]
        assert all(member.file_size == 0 for member in pickled)


def test_the_same_model_gives_the_same_program(exported: Path, tmp_path: Path) -> None:
    export_program(network(), torch.zeros(3, 1, 8, 8), tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").read_bytes() == (exported / "model.pt2").read_bytes()


def test_an_export_leaves_the_model_in_its_mode(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).train()
    export_program(model, torch.zeros(2, 4), tmp_path / "model.pt2")
    assert model.training
    assert model[1].training


def test_an_example_batch_of_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 or more"):
        export_program(nn.Linear(4, 3), torch.zeros(1, 4), tmp_path / "model.pt2")


def test_the_architecture_is_found_in_the_metadata_too(exported: Path) -> None:
    assert not (exported / "model.json").exists()
    assert load_architecture(exported) == architecture()
    torch.testing.assert_close(load_model(exported).state_dict(), network().state_dict(), rtol=0, atol=0)


class Full(io.FileIO):
    """A file on a disk that is full after so many bytes."""

    def write(self, data: Any, /) -> int:
        if self.tell() + len(data) > 20_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data) or 0


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, *_, **__: Full(path, "wb"))  # torch would call std::terminate
        with pytest.raises(OSError, match="No space left"):
            export_program(network(), INPUTS, tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").stat().st_size <= 20_000
    export_program(network(), INPUTS, tmp_path / "model.pt2")
    assert torch.export.load(tmp_path / "model.pt2").module()(INPUTS).shape == (6, 3)


def verified(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-W", "error", "-m", "workers.formats.verify"]
    arguments = [str(folder), str(folder / "x.npy"), str(folder / "y.npy")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return {file["file"]: file for file in json.loads(done.stdout)}


def test_a_fresh_process_finds_the_written_model_to_be_the_trained_one(exported: Path) -> None:
    result = verified(exported)
    assert list(result) == ["model.pt2", "model.safetensors"]
    for name, file in result.items():
        assert file["examples"] == 6
        assert file["max_abs_difference"] < 1e-5
        assert file["sha256"] == hashlib.sha256((exported / name).read_bytes()).hexdigest()


def changed(exported: Path, folder: Path, weights: dict[str, Tensor] | None, expected: Any) -> dict[str, Any]:
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if weights is not None:
        model = network()
        model.load_state_dict(weights)
        write_safetensors(model, folder / "model.safetensors", {"architecture": architecture().model_dump_json()})
    if expected is not None:
        np.save(folder / "y.npy", expected)
    found = verify(folder, folder / "x.npy", folder / "y.npy")
    return {file["file"]: file["max_abs_difference"] for file in found}


def test_other_weights_are_noticed(exported: Path, tmp_path: Path) -> None:
    weights = network().state_dict()
    weights["fc.bias"] = weights["fc.bias"] + torch.tensor([0.0, 0.25, 0.0])
    result = changed(exported, tmp_path, weights, None)
    assert result["model.safetensors"] == pytest.approx(0.25, rel=1e-4)
    assert result["model.pt2"] < 1e-5


def test_other_outputs_are_noticed(exported: Path, tmp_path: Path) -> None:
    wanted = np.load(exported / "y.npy")
    wanted[0, 0] += 0.5
    result = changed(exported, tmp_path, None, wanted)
    for name in ("model.pt2", "model.safetensors"):
        assert result[name] == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("wrong", [np.full((6, 3), np.nan, np.float32), np.zeros((6, 4), np.float32)])
def test_a_comparison_that_cannot_be_made_has_no_difference(exported: Path, tmp_path: Path, wrong: Any) -> None:
    assert changed(exported, tmp_path, None, wrong)["model.pt2"] is None
