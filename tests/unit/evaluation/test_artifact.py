import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from service.contract.errors import VerificationFailed
from service.contract.reports import Report
from service.contract.specs import Architecture, DistillSpec
from tests.unit.evaluation.reports import ENVIRONMENT, report
from workers.evaluation import artifact
from workers.evaluation.artifact import verify_artifact, weights_size, write_artifact
from workers.formats.artifacts import export_program
from workers.formats.onnx_file import write_onnx
from workers.formats.verify import verify
from workers.students.architectures import build
from workers.training.data import Scaling

ARCHITECTURE = Architecture.model_validate({"name": "resnet8", "options": {"input_shape": [1, 8, 8], "num_classes": 5}})
SPEC = DistillSpec.model_validate(
    {
        "type": "distill",
        "teacher": "mdl_01ktcz5vwm9j6p2n4qe8rhsxtb",
        "dataset": "dat_01ktcz5vwm9j6p2n4qe8rhsxtb",
        "student": {"architecture": {"name": "resnet8"}},
    }
)
LINEAGE = {"job": "job_01ktcz5vwm9j6p2n4qe8rhsxtb", "teacher": SPEC.teacher, "dataset": SPEC.dataset}
HISTORY = {"student": [{"epoch": 1, "train/loss": 1.0, "validation/loss": 1.1, "validation/accuracy": 0.5}]}
EXAMPLES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
REPORT = report()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def student() -> nn.Module:
    return build("resnet8", {}, input_shape=(1, 8, 8), num_classes=5, seed=3).train()


def write(folder: Path, model: nn.Module, examples: Tensor = EXAMPLES, found: Report = REPORT) -> dict[str, Any]:
    return write_artifact(
        folder,
        model=model,
        architecture=ARCHITECTURE,
        report=found,
        history=HISTORY,
        spec=SPEC,
        seed=7,
        lineage=LINEAGE,
        example_inputs=examples,
        environment=ENVIRONMENT,
        scaling=Scaling(factor=1 / 16, mean=(0.3,), std=(0.4,)),
    )


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return student()


@pytest.fixture(scope="module")
def folder(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact")
    write(path, model)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return found


def test_the_manifest_has_hash_and_size_of_every_other_file(folder: Path) -> None:
    files = contents(folder)
    del files["manifest.json"]
    listed = manifest_of(folder)["files"]
    assert listed == {n: {"sha256": hashlib.sha256(b).hexdigest(), "size": len(b)} for n, b in files.items()}
    models = {"model.safetensors", "model.pt2", "model.onnx"}
    assert set(listed) == models | {"report.json", "learning_curve.svg", "README.md"}


def test_the_manifest_says_what_the_model_was_made_from(folder: Path) -> None:
    manifest = manifest_of(folder)
    assert (manifest["format"], manifest["format_version"], manifest["seed"]) == ("stillhouse-artifact", 1, 7)
    assert manifest["lineage"] == LINEAGE
    assert DistillSpec.model_validate(manifest["spec"]) == SPEC
    assert Architecture.model_validate(manifest["architecture"]) == ARCHITECTURE
    assert manifest["inputs"]["shape"] == [None, 1, 8, 8]
    assert manifest["inputs"]["scaling"] == {"factor": 1 / 16, "mean": [0.3], "std": [0.4]}
    assert manifest["environment"]["versions"] == ENVIRONMENT.versions


def test_the_report_can_be_read_back(folder: Path) -> None:
    assert Report.model_validate_json((folder / "report.json").read_bytes()) == REPORT


def test_the_weights_are_the_trained_ones(folder: Path, model: nn.Module) -> None:
    written, state = load_file(folder / "model.safetensors"), model.state_dict()
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)


def test_the_size_that_a_report_gives_is_the_files(folder: Path, model: nn.Module) -> None:
    assert weights_size(model, ARCHITECTURE) == (folder / "model.safetensors").stat().st_size


def test_the_card_lists_the_hashes_of_the_model_files(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    listed = manifest_of(folder)["files"]
    assert all(listed[name]["sha256"] in card for name in listed if name != "README.md")


def test_the_same_weights_give_the_same_bytes(folder: Path, model: nn.Module, tmp_path: Path) -> None:
    before = contents(folder)
    before["manifest.json"] = json.dumps({**manifest_of(folder), "verification": None}).encode()
    write(tmp_path, model)
    again = contents(tmp_path)
    again["manifest.json"] = json.dumps(manifest_of(tmp_path)).encode()
    assert again == before


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    script = "import sys, pathlib; from tests.unit.evaluation.test_artifact import *; torch.set_num_threads(1)"
    script += "; write(pathlib.Path(sys.argv[1]), student())"
    environment = {**os.environ, "PYTHONHASHSEED": "99", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=environment)
    for name in ("model.safetensors", "model.pt2", "model.onnx", "learning_curve.svg", "README.md", "report.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_writing_again_into_the_same_folder_changes_nothing(model: nn.Module, tmp_path: Path) -> None:
    first = write(tmp_path, model)
    files = contents(tmp_path)
    assert write(tmp_path, model) == first
    assert contents(tmp_path) == files


def test_nothing_names_a_place_of_this_machine(folder: Path) -> None:
    private = {str(folder), str(Path.cwd()), sys.prefix, str(Path(torch.__file__).parent)}
    for name, data in contents(folder).items():
        assert not [place for place in private if place.encode() in data], name


def test_the_model_keeps_its_mode_and_its_gradients(folder: Path, model: nn.Module) -> None:
    assert folder.exists()
    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.slow
def test_a_fresh_process_computes_what_the_trained_model_computed(folder: Path, model: nn.Module) -> None:
    found = verify_artifact(folder, model, EXAMPLES)
    assert found["examples"] == len(EXAMPLES)
    assert max(found["pt2"], found["safetensors"], found["single"], found["onnx"]) <= found["tolerance"] < 1e-2
    assert manifest_of(folder)["verification"] == found


def in_this_process(folder: Path, examples: Tensor, expected: Tensor) -> dict[str, Any]:
    """The same check of the same files, without the seconds that a fresh process takes to import torch."""
    np.save(folder.parent / "x.npy", examples.numpy())
    np.save(folder.parent / "expected.npy", expected.numpy())
    return verify(folder, folder.parent / "x.npy", folder.parent / "expected.npy")


@pytest.mark.parametrize("file", ["pt2", "safetensors"])
def test_other_weights_in_a_file_fail_the_verification(
    file: str, model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = tmp_path / "artifact", student()
    with torch.no_grad():
        next(other.parameters()).mul_(1.1)
    write(folder, model)
    good = (folder / f"model.{file}").read_bytes()
    write(folder, other)
    monkeypatch.setattr(artifact, "outputs_of_fresh_process", in_this_process)
    with pytest.raises(VerificationFailed, match=r"logits differ from the trained model's: pt2 by 0\.\d+"):
        verify_artifact(folder, model, EXAMPLES)
    (folder / f"model.{file}").write_bytes(good)
    wrong = "safetensors" if file == "pt2" else "pt2"
    with pytest.raises(VerificationFailed, match=rf"{wrong} by 0\.\d+"):
        verify_artifact(folder, model, EXAMPLES)
    assert manifest_of(folder)["verification"] is None


def test_an_onnx_file_with_other_weights_or_none_at_all_fails_the_verification(
    folder: Path, model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = student()
    with torch.no_grad():
        next(other.parameters()).mul_(1.1)
    copied = tmp_path / "artifact"
    shutil.copytree(folder, copied)
    assert write_onnx(export_program(other.eval(), EXAMPLES, tmp_path / "other.pt2"), copied / "model.onnx") is None
    monkeypatch.setattr(artifact, "outputs_of_fresh_process", in_this_process)
    with pytest.raises(VerificationFailed, match=r"onnx by 0\.\d+"):
        verify_artifact(copied, model, EXAMPLES)
    (copied / "model.onnx").unlink()
    with pytest.raises(VerificationFailed, match=r"onnx by inf"):
        verify_artifact(copied, model, EXAMPLES)


class Bessel(nn.Module):
    """Ends in a function that ONNX does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = torch.special.i1e(self.fc(x.flatten(1)))
        return logits


def test_a_network_that_onnx_cannot_express_goes_without_and_says_which_operator(tmp_path: Path) -> None:
    manifest = write(tmp_path, Bessel())
    assert not (tmp_path / "model.onnx").exists()
    assert "model.onnx" not in manifest["files"]
    assert (manifest["onnx"]["file"], "bessel_i1e" in manifest["onnx"]["reason"]) == (None, True)
    card = (tmp_path / "README.md").read_text()
    assert f"There is no `model.onnx`: {manifest['onnx']['reason']}." in card
    assert "onnxruntime" not in card


def test_a_fresh_process_that_fails_is_quoted(
    folder: Path, model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho Traceback >&2; echo 'ValueError: the archive is cut off' >&2; exit 1\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(
        VerificationFailed, match="could not load and run the files: ValueError: the archive is cut off"
    ):
        verify_artifact(folder, model, EXAMPLES)


def test_one_example_is_enough_and_the_batch_stays_free(model: nn.Module, tmp_path: Path) -> None:
    write(tmp_path, model, EXAMPLES[:1])
    program = torch.export.load(tmp_path / "model.pt2").module()
    expected = build_expected(model, EXAMPLES)
    torch.testing.assert_close(program(EXAMPLES), expected, rtol=1e-4, atol=1e-5)


def build_expected(model: nn.Module, examples: Tensor) -> Tensor:
    training = model.training
    with torch.no_grad():
        outputs: Tensor = model.eval()(examples)
    model.train(training)
    return outputs


@pytest.mark.slow
def test_the_cards_own_instructions_work_without_stillhouse(folder: Path, model: nn.Module, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    torch.save(EXAMPLES, tmp_path / "x.pt")
    script = f"import torch\nx = torch.load({str(tmp_path / 'x.pt')!r})\n" + "\n".join(blocks)
    script += "\nimport sys\nassert not [m for m in sys.modules if m.split('.')[0] in ('workers', 'service')]"
    script += f"\ntorch.save((logits, torch.from_numpy(logits_as_array), state), {str(tmp_path / 'out.pt')!r})"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=folder)
    logits, from_onnx, state = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(logits, build_expected(model, EXAMPLES), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(from_onnx, build_expected(model, EXAMPLES), rtol=1e-4, atol=1e-5)
    assert state.keys() == model.state_dict().keys()
