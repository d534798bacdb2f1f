"""The artifact: a folder that holds a trained model and everything that may be claimed of it.

    model.safetensors    the weights
    model.pt2            the model as an exported program, which plain PyTorch loads
    model.onnx           the same for every other runtime, where ONNX has all its operators
    report.json          the comparison, as service/contract/reports.py defines it
    report.html          the same as a page with figures, which needs nothing beside it
    learning_curve.svg   how the training went, where something was trained
    pruning.svg          what was removed, and the way there, where units were removed
    README.md            the model card
    manifest.json        hashes of all of these, what made them, and how the verification went

It is made in three steps, since the report says how the files were verified: the models are written, a fresh process
verifies them (verification.py), and then everything is written that is said of them. The manifest's hashes are those
of the bytes that were verified, or there is no artifact.

The same trained weights give the same bytes, measured times excepted: no dates, no paths of the machine, keys in
order.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel
from torch import Tensor, nn

from service.contract.errors import VerificationFailed
from service.contract.reports import PAGE_FILE, Report
from service.contract.specs import Architecture
from workers.evaluation.card import FileFacts, Inputs, model_card
from workers.evaluation.figures import paper, svg_of
from workers.evaluation.figures_pruning import units_by_group
from workers.evaluation.latency import repeated
from workers.evaluation.page import report_page
from workers.evaluation.page_sections import Background
from workers.evaluation.placement import on_cpu
from workers.evaluation.plots import History, learning_curve
from workers.formats.artifacts import export_program, write_safetensors
from workers.formats.onnx_file import OPSET, write_onnx
from workers.formats.verify import ONNX, sha256_of

FORMAT = "stillhouse-artifact"
FORMAT_VERSION = 1
MANIFEST, CARD = "manifest.json", "README.md"


def write_models(
    folder: Path, *, model: nn.Module, architecture: Architecture | None, example_inputs: Tensor
) -> str | None:
    """Write the files that hold the model; return None, or why there is no model.onnx.

    `example_inputs` (≥1, …) are scaled inputs of the model's type.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # An export from a batch of one would bake the batch in.
    network, examples = on_cpu(model), repeated(example_inputs.detach().cpu(), max(2, len(example_inputs)))
    write_safetensors(network, folder / "model.safetensors", metadata_of(architecture))
    return write_onnx(export_program(network, examples, folder / "model.pt2"), folder / ONNX)


def write_artifact(
    folder: Path,
    *,
    report: Report,
    without_onnx: str | None,
    architecture: Architecture | None,
    inputs: Inputs,
    history: History,
    spec: BaseModel,
    seed: int,
    lineage: Mapping[str, Any],
    pictures: Mapping[int, bytes] | None = None,
) -> dict[str, Any]:
    """Write all that is said of the models in `folder`, and return the manifest.

    `report` says how they were verified, `spec` what the job was, `without_onnx` why there is no model.onnx (what
    `write_models` returned). `lineage` names, as plain JSON, what the model was made from. `history` is empty where
    nothing was trained; `pictures` are PNG files of inputs, by their place in the split. Raises VerificationFailed
    where the files are not those that the report verifies.
    """
    check_verified(folder, report)
    (folder / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for name, picture in drawn(report, history).items():
        (folder / name).write_bytes(picture)
    described = None if architecture is None else architecture.model_dump(mode="json")
    made_from: dict[str, Any] = {"spec": spec.model_dump(mode="json"), "lineage": dict(lineage)}
    background = Background(history=history, architecture=described, pictures=pictures or {}, **made_from)
    (folder / PAGE_FILE).write_text(report_page(report, background), encoding="utf-8")
    card = model_card(
        report=report,
        architecture=described,
        inputs=inputs,
        files=facts_of_files(folder, {MANIFEST, CARD}),
        without_onnx=without_onnx,
        **made_from,
    )
    (folder / CARD).write_text(card, encoding="utf-8")
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "files": {name: vars(facts) for name, facts in facts_of_files(folder, {MANIFEST}).items()},
        "architecture": described,
        "inputs": inputs.as_json(),
        "onnx": {"file": ONNX if without_onnx is None else None, "opset": OPSET, "reason": without_onnx},
        "seed": seed,
        "environment": report.environment.model_dump(mode="json"),
        "verification": [file.model_dump(mode="json") for file in report.verification],
        **made_from,
    }
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return manifest


def check_verified(folder: Path, report: Report) -> None:
    """Raise VerificationFailed unless each model file of `folder` is the one that was verified."""
    models = {path.name: sha256_of(path) for path in sorted(folder.glob("model.*"))}
    verified = {file.file: file.sha256 for file in report.verification}
    if wrong := [name for name in sorted(models | verified) if models.get(name) != verified.get(name)]:
        raise VerificationFailed(
            f"{', '.join(wrong)}: not the files that were verified; something else writes into the job's folder. "
            "Nothing was published; run the job again."
        )


def weights_size(model: nn.Module, architecture: Architecture | None = None) -> int:
    """Bytes of model.safetensors as `write_models` writes it with this architecture."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write_safetensors(on_cpu(model), path, metadata_of(architecture))
        return path.stat().st_size


def metadata_of(architecture: Architecture | None) -> dict[str, str]:
    """What the weights' file says of itself, so that it can be loaded alone."""
    if architecture is None:
        return {}
    return {"architecture": json.dumps(architecture.model_dump(mode="json"), sort_keys=True)}


def drawn(report: Report, history: History) -> dict[str, bytes]:
    """The pictures of the model card, as SVG files by name."""
    found = {}
    if any(history.values()):
        found["learning_curve.svg"] = curve(history, report)
    with paper():
        figure = units_by_group(report)
        if figure is not None:
            found["pruning.svg"] = svg_of(figure, "What was removed")
    return found


def curve(history: History, report: Report) -> bytes:
    """The learning curve, with the accuracy that the report gives the teacher."""
    accuracy = report.teacher.accuracy
    return learning_curve(
        history, teacher_accuracy=None if accuracy is None else accuracy.value, teacher_split=report.split
    )


def facts_of_files(folder: Path, without: Collection[str]) -> dict[str, FileFacts]:
    """Hash and size of every other file, by name in order."""
    files = sorted(path for path in folder.iterdir() if path.name not in without)
    return {path.name: FileFacts(sha256=sha256_of(path), size=path.stat().st_size) for path in files}
