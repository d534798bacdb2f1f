"""The artifact: a folder that holds a trained model and everything that may be claimed of it.

    model.safetensors    the weights
    model.pt2            the model as an exported program, which plain PyTorch loads
    report.json          the comparison, as service/contract/reports.py defines it
    learning_curve.svg   how the training went
    README.md            the model card
    manifest.json        hashes of all of these, what made them, and how the verification went

The same trained weights give the same bytes, measured times excepted: no dates, no paths of the machine, keys in
order. What is in the files is then loaded by a fresh process, which has nothing but the files, and must compute
what the trained model computed.
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from service.contract.reports import Environment, Report
from service.contract.specs import Architecture, DistillSpec
from workers.evaluation.card import FileFacts, Inputs, model_card
from workers.evaluation.plots import History, learning_curve
from workers.formats.artifacts import export_program, write_safetensors
from workers.training.data import Scaling

FORMAT = "stillhouse-artifact"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"


def write_artifact(
    folder: Path,
    *,
    model: nn.Module,
    architecture: Architecture | None,
    report: Report,
    history: History,
    spec: DistillSpec,
    seed: int,
    lineage: Mapping[str, Any],
    example_inputs: Tensor,
    environment: Environment,
    scaling: Scaling | None = None,
) -> dict[str, Any]:
    """Write all files of the artifact into `folder` and return its manifest.

    `example_inputs` (≥2, …) are scaled inputs of the model's type: two or more, since an export from a batch of
    one bakes the batch in. `scaling` says how raw inputs become such inputs. `lineage` names, as plain JSON, what
    the model was made from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network, examples = on_cpu(model), example_inputs.detach().cpu()
    write_safetensors(network, folder / "model.safetensors")
    export_program(network, examples, folder / "model.pt2")
    (folder / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / "learning_curve.svg").write_bytes(curve(history, report))
    inputs = Inputs(tuple(examples.shape[1:]), str(examples.dtype).removeprefix("torch."), scaling)
    described = None if architecture is None else architecture.model_dump(mode="json")
    made_from = {"spec": spec.model_dump(mode="json"), "lineage": dict(lineage)}
    card = model_card(report=report, architecture=described, inputs=inputs, files=facts_of_files(folder), **made_from)
    (folder / "README.md").write_text(card, encoding="utf-8")
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "files": {name: vars(facts) for name, facts in facts_of_files(folder).items()},
        "architecture": described,
        "inputs": inputs.as_json(),
        "seed": seed,
        "environment": environment.model_dump(mode="json"),
        "verification": None,
        **made_from,
    }
    write_manifest(folder, manifest)
    return manifest


def weights_size(model: nn.Module) -> int:
    """Bytes of model.safetensors, as `write_artifact` writes it: the size that a report gives."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write_safetensors(on_cpu(model), path)
        return path.stat().st_size


def on_cpu(model: nn.Module) -> nn.Module:
    """A copy on the CPU in evaluation mode: what an artifact holds, wherever and however the model was trained."""
    return copy.deepcopy(model).cpu().eval()


def curve(history: History, report: Report) -> bytes:
    """The learning curve, with the accuracy that the report gives the teacher."""
    accuracy = report.teacher.accuracy
    return learning_curve(
        history, teacher_accuracy=None if accuracy is None else accuracy.value, teacher_split=report.split
    )


def facts_of_files(folder: Path) -> dict[str, FileFacts]:
    """Hash and size of every file but the manifest, by name in order."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    return {path.name: FileFacts(sha256=_sha256(path), size=path.stat().st_size) for path in files}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """manifest.json: keys in order, so that equal contents are equal bytes."""
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
