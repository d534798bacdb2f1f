import copy
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from service.contract.errors import VerificationFailed
from service.contract.reports import FileVerification, Report
from service.contract.specs import Architecture, DistillSpec
from tests.unit.evaluation.reports import ENVIRONMENT, report
from workers.evaluation import verification
from workers.evaluation.artifact import weights_size, write_artifact, write_models
from workers.evaluation.card import Inputs
from workers.evaluation.verification import verify_models
from workers.formats.artifacts import export_program
from workers.formats.onnx_file import write_onnx
from workers.formats.verify import sha256_of, verify
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
IN_A_FRESH_PROCESS = verification.found_by_fresh_process


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def student() -> nn.Module:
    return build("resnet8", {}, input_shape=(1, 8, 8), num_classes=5, seed=3).train()


def in_this_process(folder: Path, examples: Tensor, expected: Tensor) -> list[dict[str, Any]]:
    """The same check of the same files, without the seconds that a fresh process takes to import torch."""
    np.save(folder.parent / "x.npy", examples.numpy())
    np.save(folder.parent / "expected.npy", expected.numpy())
    return verify(folder, folder.parent / "x.npy", folder.parent / "expected.npy")


@pytest.fixture(autouse=True, scope="module")
def verify_here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "found_by_fresh_process", in_this_process)
        yield


def write_model(folder: Path, model: nn.Module, examples: Tensor = EXAMPLES) -> str | None:
    return write_models(folder, model=model, architecture=ARCHITECTURE, example_inputs=examples)


def document(folder: Path, found: Report, without_onnx: str | None = None) -> dict[str, Any]:
    return write_artifact(
        folder,
        report=found,
        without_onnx=without_onnx,
        architecture=ARCHITECTURE,
        inputs=Inputs((1, 8, 8), "float32", Scaling(factor=1 / 16, mean=(0.3,), std=(0.4,))),
        history=HISTORY,
        spec=SPEC,
        seed=7,
        lineage=LINEAGE,
    )


def write(folder: Path, model: nn.Module) -> dict[str, Any]:
    """All steps, as a job takes them."""
    without_onnx = write_model(folder, model)
    found = REPORT.model_copy(update={"verification": verify_models(folder, model, EXAMPLES)})
    return document(folder, found, without_onnx)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return student()


@pytest.fixture(scope="module")
def folder(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "artifact"
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
    assert set(listed) == models | {"report.json", "report.html", "learning_curve.svg", "README.md"}


def test_the_manifest_says_what_the_model_was_made_from(folder: Path) -> None:
    manifest = manifest_of(folder)
    assert (manifest["format"], manifest["format_version"], manifest["seed"]) == ("stillhouse-artifact", 1, 7)
    assert manifest["lineage"] == LINEAGE
    assert DistillSpec.model_validate(manifest["spec"]) == SPEC
    assert Architecture.model_validate(manifest["architecture"]) == ARCHITECTURE
    assert manifest["inputs"]["shape"] == [None, 1, 8, 8]
    assert manifest["inputs"]["scaling"] == {"factor": 1 / 16, "mean": [0.3], "std": [0.4]}
    assert manifest["environment"]["versions"] == ENVIRONMENT.versions


def test_the_report_can_be_read_back_and_says_how_each_file_was_verified(folder: Path, model: nn.Module) -> None:
    found = Report.model_validate_json((folder / "report.json").read_bytes())
    assert found.model_copy(update={"verification": ()}) == REPORT
    listed = manifest_of(folder)
    assert [file.model_dump() for file in found.verification] == listed["verification"]
    assert [(file.file, file.tool, file.version) for file in found.verification] == [
        ("model.pt2", "torch.export.load", version("torch")),
        ("model.safetensors", "safetensors.torch.load_model", version("safetensors")),
        ("model.onnx", "onnxruntime.InferenceSession", version("onnxruntime")),
    ]
    largest = max(1.0, float(build_expected(model, EXAMPLES).abs().max()))
    for file in found.verification:
        assert file.sha256 == listed["files"][file.file]["sha256"]
        assert file.examples == len(EXAMPLES)
        assert 0 <= file.max_abs_difference <= file.tolerance == pytest.approx(1e-4 * largest)


def test_the_card_says_how_each_file_was_verified(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    for file in manifest_of(folder)["verification"]:
        assert f"| `{file['file']}` | `{file['tool']}` {file['version']} | 5 | " in card


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
    write(tmp_path / "again", model)
    assert contents(tmp_path / "again") == contents(folder)


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    script = "import sys, pathlib; from tests.unit.evaluation.test_artifact import *; torch.set_num_threads(1)"
    script += "; write(pathlib.Path(sys.argv[1]) / 'artifact', student())"
    environment = {**os.environ, "PYTHONHASHSEED": "99", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=environment)
    models = ("model.safetensors", "model.pt2", "model.onnx")
    for name in (*models, "learning_curve.svg", "README.md", "report.json", "report.html"):
        assert (tmp_path / "artifact" / name).read_bytes() == (folder / name).read_bytes(), name


def test_writing_again_into_the_same_folder_changes_nothing(model: nn.Module, tmp_path: Path) -> None:
    first = write(tmp_path / "artifact", model)
    files = contents(tmp_path / "artifact")
    assert write(tmp_path / "artifact", model) == first
    assert contents(tmp_path / "artifact") == files


def test_nothing_names_a_place_of_this_machine(folder: Path) -> None:
    private = {str(folder), str(Path.cwd()), sys.prefix, str(Path(torch.__file__).parent)}
    for name, data in contents(folder).items():
        assert not [place for place in private if place.encode() in data], name


def test_the_model_keeps_its_mode_and_its_gradients(folder: Path, model: nn.Module) -> None:
    assert folder.exists()
    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.slow
def test_a_fresh_process_computes_what_the_trained_model_computed(
    folder: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "found_by_fresh_process", IN_A_FRESH_PROCESS)
    found = verify_models(folder, model, EXAMPLES)
    assert [file.model_dump(mode="json") for file in found] == manifest_of(folder)["verification"]


def scaled(model: nn.Module) -> nn.Module:
    """The model with its first weights 10% larger."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).mul_(1.1)
    return other


@pytest.mark.parametrize("file", ["pt2", "safetensors"])
def test_other_weights_in_a_file_fail_the_verification(
    file: str, folder: Path, model: nn.Module, tmp_path: Path
) -> None:
    wrong = tmp_path / "artifact"
    write_model(wrong, scaled(model))
    for good in {"model.pt2", "model.safetensors", "model.onnx"} - {f"model.{file}"}:
        shutil.copy(folder / good, wrong / good)
    with pytest.raises(VerificationFailed, match=rf"logits differ from the trained model's: .*model\.{file} by 0\.\d+"):
        verify_models(wrong, model, EXAMPLES)


def test_an_onnx_file_with_other_weights_fails_the_verification(folder: Path, model: nn.Module, tmp_path: Path) -> None:
    copied = tmp_path / "artifact"
    shutil.copytree(folder, copied)
    program = export_program(scaled(model).eval(), EXAMPLES, tmp_path / "other.pt2")
    assert write_onnx(program, copied / "model.onnx") is None
    with pytest.raises(VerificationFailed, match=r"model\.onnx by 0\.\d+"):
        verify_models(copied, model, EXAMPLES)


def test_outputs_that_are_no_numbers_fail_the_verification(model: nn.Module, tmp_path: Path) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    write_model(tmp_path / "artifact", broken)
    with pytest.raises(VerificationFailed, match=r"model\.pt2 by no finite number"):
        verify_models(tmp_path / "artifact", broken, EXAMPLES)


@pytest.mark.parametrize("name", ["model.pt2", "model.safetensors", "model.onnx"])
def test_nothing_is_said_of_a_file_that_is_not_the_verified_one(name: str, folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "artifact"
    shutil.copytree(folder, copied)
    found = Report.model_validate_json((copied / "report.json").read_bytes())
    with (copied / name).open("r+b") as file:
        file.seek(200)
        file.write(b"\0\1")
    (copied / "manifest.json").unlink()
    with pytest.raises(VerificationFailed, match=rf"^{name}: not the files that were verified"):
        document(copied, found)
    (copied / name).unlink()
    with pytest.raises(VerificationFailed, match=rf"^{name}: "):
        document(copied, found)
    assert not (copied / "manifest.json").exists()


def test_models_that_nobody_verified_become_no_artifact(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "artifact")
    with pytest.raises(VerificationFailed, match="not the files that were verified"):
        document(tmp_path / "artifact", REPORT)


class Bessel(nn.Module):
    """Ends in a function that ONNX does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = torch.special.i1e(self.fc(x.flatten(1)))
        return logits


def test_a_network_that_onnx_cannot_express_goes_without_and_says_which_operator(tmp_path: Path) -> None:
    without_onnx = write_model(tmp_path, Bessel())
    verified = tuple(
        FileVerification(
            file=name, sha256=sha256_of(tmp_path / name), tool="none", version="0", examples=5, max_abs_difference=0.0,
            tolerance=1.0,
        )
        for name in ("model.pt2", "model.safetensors")
    )  # fmt: skip
    manifest = document(tmp_path, REPORT.model_copy(update={"verification": verified}), without_onnx)
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
    monkeypatch.setattr(verification, "found_by_fresh_process", IN_A_FRESH_PROCESS)
    with pytest.raises(
        VerificationFailed, match="could not load and run the files: ValueError: the archive is cut off"
    ):
        verify_models(folder, model, EXAMPLES)


def test_one_example_is_enough_and_the_batch_stays_free(model: nn.Module, tmp_path: Path) -> None:
    write_model(tmp_path, model, EXAMPLES[:1])
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
