"""What pipelines work on in tests: handwritten digits, a teacher trained on them, and a context without a worker."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from service.contract.specs import Architecture, DatasetDeclaration, Job, KdObjective, Training
from tests.unit.training.blobs import CPU, Listening
from workers.distillation.objectives import labels_only
from workers.formats.datasets import load_dataset, read_dataset
from workers.formats.models import facts_of, write_canonical
from workers.job import JobContext, JobResult
from workers.journal import Silent
from workers.material import built
from workers.pipeline import PIPELINES
from workers.training.loop import train

TEACHER, STUDENT, DATASET = "mdl_" + 26 * "1", "mdl_" + 26 * "2", "dat_" + 26 * "3"
UPLOAD = "upl_" + 26 * "0"
SHAPE = [1, 8, 8]
TRAINING = {"epochs": 6, "batch_size": 64, "optimizer": {"name": "adamw", "lr": 0.005}}


def mlp(*hidden: int, dropout: float = 0.0) -> Architecture:
    options = {"input_shape": SHAPE, "num_classes": 10, "hidden": hidden, "dropout": dropout}
    return Architecture.model_validate({"name": "mlp", "options": options})


def canonical_digits(root: Path) -> dict[str, Path]:
    """Canonical folders of the digits, of a teacher trained on them, and of an untrained student."""
    folders = {name: root / name for name in (TEACHER, STUDENT, DATASET)}
    for folder in folders.values():
        folder.mkdir()
    digits = load_digits()
    np.savez(root / "data.npz", x=digits.images[:, None].astype(np.float32), y=digits.target)
    declared = {"name": "digits", "files": {"data.npz": UPLOAD}, "transform": {"normalize": "auto"}}
    read_dataset(root, DatasetDeclaration.model_validate(declared), folders[DATASET], max_bytes=2**30)
    dataset, training = load_dataset(folders[DATASET]), Training.model_validate({**TRAINING, "epochs": 12})
    for name, architecture, epochs in ((TEACHER, mlp(128, 64), 12), (STUDENT, mlp(12), 0)):
        network = built(architecture, seed=1)
        if epochs:
            train(network, dataset, labels_only(KdObjective()), training, seed=1, device=CPU, journal=Silent())
        facts = facts_of(architecture, network)
        write_canonical(network.state_dict(), architecture, facts, folders[name])
    return folders


def context_of(spec: Job, inputs: dict[str, Path], work_dir: Path, **changes: Any) -> JobContext:
    work_dir.mkdir(parents=True, exist_ok=True)
    context = JobContext(
        job_id="job_" + 26 * "4",
        spec=spec,
        inputs=inputs,
        work_dir=work_dir,
        seed=spec.seed,
        device=CPU,
        num_threads=1,
        checkpoint=None,
        journal=Listening(),
    )
    return replace(context, **changes)


def run(context: JobContext) -> JobResult:
    return PIPELINES[context.spec.type](context)
