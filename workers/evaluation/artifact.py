"""The artifact: a folder that holds a trained model and everything that may be claimed of it.

    model.safetensors    the weights
    model.pt2            the model as an exported program, which plain PyTorch loads
    model.onnx           the same for every other runtime, where ONNX has all its operators
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
import math
import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from service.contract.errors import VerificationFailed
from service.contract.reports import Environment, Report
from service.contract.specs import Architecture, DistillSpec
from workers.evaluation.card import FileFacts, Inputs, model_card
from workers.evaluation.latency import repeated
from workers.evaluation.plots import History, learning_curve
from workers.formats.artifacts import export_program, write_safetensors
from workers.formats.onnx_file import OPSET, write_onnx
from workers.training.data import Scaling

FORMAT = "stillhouse-artifact"
FORMAT_VERSION = 1
MANIFEST, CARD, ONNX = "manifest.json", "README.md", "model.onnx"

#: Of logits, relative to the largest of them (or 1): far above what float32 rounds differently between kernels,
#: far below what a wrong weight does.
TOLERANCE = 1e-4
VERIFICATION_SECONDS = 900


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

    `example_inputs` (≥1, …) are scaled inputs of the model's type, and `scaling` says how raw ones become such.
    `lineage` names, as plain JSON, what the model was made from. A network that ONNX cannot express has no
    model.onnx, and the manifest says why under "onnx".
    """
    folder.mkdir(parents=True, exist_ok=True)
    # An export from a batch of one would bake the batch in.
    network, examples = on_cpu(model), repeated(example_inputs.detach().cpu(), max(2, len(example_inputs)))
    write_safetensors(network, folder / "model.safetensors", metadata_of(architecture))
    program = export_program(network, examples, folder / "model.pt2")
    without_onnx = write_onnx(program, folder / ONNX)
    (folder / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / "learning_curve.svg").write_bytes(curve(history, report))
    inputs = Inputs(tuple(examples.shape[1:]), str(examples.dtype).removeprefix("torch."), scaling)
    described = None if architecture is None else architecture.model_dump(mode="json")
    made_from = {"spec": spec.model_dump(mode="json"), "lineage": dict(lineage)}
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
        "environment": environment.model_dump(mode="json"),
        "verification": None,
        **made_from,
    }
    write_manifest(folder, manifest)
    return manifest


def verify_artifact(folder: Path, model: nn.Module, example_inputs: Tensor) -> dict[str, Any]:
    """Load the artifact in a fresh process and compare its outputs with the trained model's on `example_inputs`.

    Returns the largest absolute differences in logits ("pt2", "safetensors", "single": the program on one example
    alone, and "onnx", None where there is no such file) with the tolerance, and writes them into the manifest.
    Raises VerificationFailed where one is beyond the tolerance, or the files cannot be loaded.
    """
    examples = example_inputs.detach().cpu()
    with torch.no_grad():
        expected = on_cpu(model)(examples)
    found = outputs_of_fresh_process(folder, examples, expected)
    verification = {**found, "tolerance": TOLERANCE * max(1.0, float(expected.abs().max()))}
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    formats = ("pt2", "safetensors", "single", *(["onnx"] if ONNX in manifest["files"] else []))
    compared = {name: math.inf if found[name] is None else found[name] for name in formats}
    wrong = {name: value for name, value in compared.items() if not value <= verification["tolerance"]}
    if wrong or not found["finite"]:
        differences = ", ".join(f"{name} by {value:.3g}" for name, value in compared.items())
        raise VerificationFailed(
            f"Loaded in a fresh process, the files' logits differ from the trained model's: {differences}; expected "
            f"at most {verification['tolerance']:.3g}. Nothing was published; please report this architecture."
        )
    write_manifest(folder, {**manifest, "verification": verification})
    return verification


def outputs_of_fresh_process(folder: Path, examples: Tensor, expected: Tensor) -> dict[str, Any]:
    """What `python -m workers.formats.verify` says of the folder's files."""
    with TemporaryDirectory() as scratch:
        files = {"x.npy": examples, "expected.npy": expected}
        for name, rows in files.items():
            np.save(Path(scratch) / name, rows.numpy())
        command = [sys.executable, "-m", "workers.formats.verify", str(folder.resolve())]
        try:
            done = subprocess.run(  # noqa: S603  our own interpreter and module, no shell
                [*command, *(str(Path(scratch) / name) for name in files)],
                cwd=Path(__file__).parents[2],
                # As many threads as here: the order of a sum depends on them.
                env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
                capture_output=True,
                text=True,
                timeout=VERIFICATION_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise VerificationFailed(
                f"A fresh process did not finish checking the files within {VERIFICATION_SECONDS} seconds."
            ) from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise VerificationFailed(f"A fresh process could not load and run the files: {reason}")
    verdict: dict[str, Any] = json.loads(done.stdout)
    return verdict


def weights_size(model: nn.Module, architecture: Architecture | None = None) -> int:
    """Bytes of model.safetensors as `write_artifact` writes it with this architecture."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write_safetensors(on_cpu(model), path, metadata_of(architecture))
        return path.stat().st_size


def metadata_of(architecture: Architecture | None) -> dict[str, str]:
    """What the weights' file says of itself, so that it can be loaded alone."""
    if architecture is None:
        return {}
    return {"architecture": json.dumps(architecture.model_dump(mode="json"), sort_keys=True)}


def on_cpu(model: nn.Module) -> nn.Module:
    """A copy on the CPU in evaluation mode: what an artifact holds, wherever and however the model was trained."""
    return copy.deepcopy(model).cpu().eval()


def curve(history: History, report: Report) -> bytes:
    """The learning curve, with the accuracy that the report gives the teacher."""
    accuracy = report.teacher.accuracy
    return learning_curve(
        history, teacher_accuracy=None if accuracy is None else accuracy.value, teacher_split=report.split
    )


def facts_of_files(folder: Path, without: Collection[str]) -> dict[str, FileFacts]:
    """Hash and size of every other file, by name in order."""
    files = sorted(path for path in folder.iterdir() if path.name not in without)
    return {path.name: FileFacts(sha256=_sha256(path), size=path.stat().st_size) for path in files}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """manifest.json: keys in order, so that equal contents are equal bytes."""
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
