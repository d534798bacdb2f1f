"""The distillation job on real handwritten digits, in this process: from canonical folders to a verified artifact."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from service.contract.errors import Invalid
from service.contract.reports import Report
from service.contract.specs import (
    DatasetDeclaration,
    DistillSpec,
    ModelDeclaration,
)
from tests.integration.pipelines import (
    DATASET,
    STUDENT,
    TEACHER,
    TRAINING,
    UPLOAD,
    context_of,
    run,
)
from tests.unit.training.blobs import Crash, Interrupting, Listening, fingerprint
from workers.formats.datasets import load_dataset, read_dataset
from workers.formats.models import read_model
from workers.job import JobContext, JobResult
from workers.journal import Stopped
from workers.pipeline import stages_of
from workers.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def spec_of(student: dict[str, Any] | None = None, **config: Any) -> DistillSpec:
    student = student or {"architecture": {"name": "mlp", "options": {"hidden": [16], "dropout": 0.1}}}
    return DistillSpec.model_validate(
        {
            "type": "distill",
            "teacher": TEACHER,
            "dataset": DATASET,
            "student": student,
            "config": {"training": TRAINING, **config},
            "seed": 3,
        }
    )


@pytest.fixture(scope="module")
def finished(
    inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[JobResult, Listening, DistillSpec]:
    spec, journal = spec_of(control=True), Listening()
    return run(context_of(spec, inputs, tmp_path_factory.mktemp("work"), journal=journal)), journal, spec


def test_the_student_is_smaller_and_close_to_its_teacher(finished: tuple[JobResult, Listening, DistillSpec]) -> None:
    report = Report.model_validate(finished[0].report)
    assert report.split == "test"
    assert report.teacher.accuracy is not None
    assert report.student.accuracy is not None
    assert report.teacher.accuracy.value > 0.93
    assert report.student.accuracy.value > 0.85
    assert report.student.parameters == 64 * 16 + 16 + 16 * 10 + 10
    assert report.comparison.agreement.value > 0.85
    assert report.control is not None
    assert report.distillation_effect is not None
    assert report.selection.selected == "best"


def test_every_stage_is_told_and_timed(finished: tuple[JobResult, Listening, DistillSpec]) -> None:
    result, journal, spec = finished
    assert tuple(journal.stages) == stages_of(spec)
    timed = {stage.name: stage.seconds for stage in Report.model_validate(result.report).stages}
    assert list(timed) == ["loading", "teacher", "training", "control", "evaluating"]
    assert all(seconds > 0 for seconds in timed.values())


def test_metrics_of_student_and_control_are_told_apart(finished: tuple[JobResult, Listening, DistillSpec]) -> None:
    points = finished[1].metric_points
    names = {name for _, values in points for name in values}
    assert {"train/loss", "validation/kl", "control/train/loss", "control/validation/accuracy"} <= names
    assert [step for step, values in points if "validation/kl" in values] == [1, 2, 3, 4, 5, 6]


def test_the_artifact_says_what_made_it(finished: tuple[JobResult, Listening, DistillSpec]) -> None:
    result, _, _ = finished
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["lineage"] == {"job": "job_" + 26 * "4", "teacher": TEACHER, "dataset": DATASET}
    assert manifest["seed"] == 3
    verified = {file["file"]: file for file in manifest["verification"]}
    assert list(verified) == ["model.pt2", "model.safetensors", "model.onnx"]
    assert all(manifest["files"][name]["sha256"] == file["sha256"] for name, file in verified.items())
    assert all(file["max_abs_difference"] <= file["tolerance"] for file in verified.values())
    assert json.loads((result.folder / "report.json").read_text()) == result.report
    assert result.report["verification"] == manifest["verification"]
    for name, facts in manifest["files"].items():
        assert hashlib.sha256((result.folder / name).read_bytes()).hexdigest() == facts["sha256"]
    documents = {"report.json", "report.html", "README.md", "learning_curve.svg"}
    assert {"model.safetensors", "model.pt2", *documents} <= set(manifest["files"])


def test_the_page_shows_the_inputs_on_which_student_and_teacher_differ_most(
    finished: tuple[JobResult, Listening, DistillSpec], inputs: dict[str, Path]
) -> None:
    result, _, _ = finished
    report, page = Report.model_validate(result.report), (result.folder / "report.html").read_text()
    assert report.by_input is not None
    assert report.by_class is not None
    assert report.by_class.classes == 10
    assert page.count('<img src="data:image/png;base64,') == 10
    test = load_dataset(inputs[DATASET]).test
    assert test is not None
    assert test.y is not None
    for each in report.by_input.most_different:
        assert each.label == test.y[test.rows[each.row]]


def test_the_result_can_be_the_teacher_of_the_next_job(
    finished: tuple[JobResult, Listening, DistillSpec], inputs: dict[str, Path], tmp_path: Path
) -> None:
    result, _, _ = finished
    out = tmp_path / "canonical"
    out.mkdir()
    declared = {**result.declaration, "files": {"model.safetensors": UPLOAD}}
    facts = read_model(result.folder, ModelDeclaration.model_validate(declared), out)
    assert facts == result.facts
    assert [group["units"] for group in facts["units"]["groups"]] == [16]
    student = {"architecture": {"name": "mlp", "options": {"hidden": [4]}}}
    next_job = context_of(spec_of(student), {**inputs, TEACHER: out}, tmp_path / "work", journal=UntilEvaluation())
    assert len(train_all(next_job)) == 2


@dataclass
class UntilEvaluation(Interrupting):
    """Ends the process when all training is done; what it made is in the last checkpoint."""

    last: str = "evaluating"

    def stage(self, name: str) -> None:
        super().stage(name)
        if name == self.last:
            raise Crash


def train_all(context: JobContext) -> dict[str, str]:
    """Run the job up to its evaluation; return the hashes of all weights that it trained."""
    journal = context.journal
    assert isinstance(journal, UntilEvaluation)
    with pytest.raises(Crash):
        run(context)
    finished = load_checkpoint(journal.checkpoints[-1][0])["finished"]
    states = ("best_state", "last_state")
    trained = [name for name in finished if name != "shrunk"]
    return {f"{name} {state}": fingerprint(finished[name][state]) for name in trained for state in states}


@pytest.fixture(scope="module")
def expected(
    inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], UntilEvaluation]:
    journal = UntilEvaluation()
    hashes = train_all(context_of(spec_of(control=True), inputs, tmp_path_factory.mktemp("whole"), journal=journal))
    assert len(hashes) == 4
    return hashes, journal


@pytest.mark.parametrize("at", [1, 4, 8, 30, 105, 135, 150, 210])
def test_a_killed_job_makes_the_same_student_and_control(
    expected: tuple[dict[str, str], UntilEvaluation], inputs: dict[str, Path], tmp_path: Path, at: int
) -> None:
    spec = spec_of(control=True)
    killed, resumed = Interrupting(crash_at=at, due_every=7), UntilEvaluation()
    with pytest.raises(Crash):
        run(context_of(spec, inputs, tmp_path / "first", journal=killed))
    checkpoint, _ = killed.checkpoints[-1]
    again = context_of(spec, inputs, tmp_path / "second", checkpoint=checkpoint, journal=resumed)
    assert train_all(again) == expected[0]
    # Each step of training asks once whether a checkpoint is due, and one is every 7 steps.
    steps_done_twice = killed.due_asked + resumed.due_asked - expected[1].due_asked
    assert 0 <= steps_done_twice < 7


def test_a_job_stopped_in_each_of_its_trainings_does_nothing_twice(
    expected: tuple[dict[str, str], UntilEvaluation], inputs: dict[str, Path], tmp_path: Path
) -> None:
    spec, checkpoint = spec_of(control=True), None
    told: list[tuple[int, dict[str, float]]] = []
    stages: list[str] = []
    for attempt, stop_at in enumerate((60, 60, 80)):
        journal: Listening = Interrupting(stop_at=stop_at)
        with pytest.raises(Stopped):
            run(context_of(spec, inputs, tmp_path / str(attempt), checkpoint=checkpoint, journal=journal))
        checkpoint = journal.checkpoints[-1][0]
        told += journal.metric_points
        stages.append(journal.stages[-1])
    journal = UntilEvaluation()
    final = train_all(context_of(spec, inputs, tmp_path / "last", checkpoint=checkpoint, journal=journal))
    assert final == expected[0]
    assert set(stages) == {"training", "control"}
    assert losses(told + journal.metric_points) == losses(expected[1].metric_points)


def losses(points: list[tuple[int, dict[str, float]]]) -> list[tuple[int, str, float]]:
    return [(step, name, value) for step, values in points for name, value in values.items() if "loss" in name]


def test_a_resumed_job_keeps_the_number_of_threads(inputs: dict[str, Path], tmp_path: Path) -> None:
    spec, killed = spec_of(), Interrupting(crash_at=30, due_every=7)
    with pytest.raises(Crash):
        run(context_of(spec, inputs, tmp_path / "first", journal=killed))
    checkpoint, _ = killed.checkpoints[-1]
    train_all(context_of(spec, inputs, tmp_path / "second", checkpoint=checkpoint, num_threads=2,
                         journal=UntilEvaluation()))  # fmt: skip
    assert torch.get_num_threads() == 1


def test_a_registered_model_is_trained_on_or_drawn_anew(inputs: dict[str, Path], tmp_path: Path) -> None:
    hashes = []
    for reset in (False, True):
        spec = spec_of({"model": STUDENT, "reset": reset}, training={**TRAINING, "epochs": 1})
        hashes.append(train_all(context_of(spec, inputs, tmp_path / str(reset), journal=UntilEvaluation())))
    assert hashes[0] != hashes[1]


def test_what_does_not_fit_is_told_before_anything_runs(inputs: dict[str, Path], tmp_path: Path) -> None:
    student = {"architecture": {"name": "mlp", "options": {"num_classes": 7}}}
    with pytest.raises(Invalid, match="7 outputs"):
        run(context_of(spec_of(student), inputs, tmp_path))


def test_an_architecture_that_cannot_be_built_is_told_with_its_field(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        run(context_of(spec_of({"architecture": {"name": "lenet5", "options": {}}}), inputs, tmp_path))
    assert caught.value.errors[0].pointer == "/student/architecture/options"


def test_a_shrunk_student_is_its_teacher_smaller_and_resumes_with_the_same_bits(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    spec = spec_of({"shrink": {"macs": 0.25}}, training={**TRAINING, "epochs": 2})
    journal = UntilEvaluation()
    plain = train_all(context_of(spec, inputs, tmp_path / "plain", journal=journal))
    assert set(journal.stages) == {"loading", "shrinking", "teacher", "training", "evaluating"}
    interrupted = UntilEvaluation(stop_at=30)
    with pytest.raises(Stopped):
        run(context_of(spec, inputs, tmp_path / "first", journal=interrupted))
    checkpoint = interrupted.checkpoints[-1][0]
    again = context_of(spec, inputs, tmp_path / "second", journal=UntilEvaluation(), checkpoint=checkpoint)
    assert train_all(again) == plain
    result = run(context_of(spec, inputs, tmp_path / "whole", checkpoint=journal.checkpoints[-1][0]))
    report = Report.model_validate(result.report)
    assert report.comparison.macs_ratio <= 0.25
    assert report.comparison.agreement.value > 0.9
    assert (result.folder / "model.pt2").exists()


OBJECTIVES: dict[str, dict[str, Any]] = {
    "reverse_kl": {"divergence": "reverse_kl"},
    "jensen_shannon": {"divergence": "jensen_shannon", "beta": 0.3, "label_smoothing": 0.1},
    "standardized": {"preset": "cifar100_standardized"},
    "ramps": {"alpha": {"from": 0.9, "to": 0.1}, "temperature": {"from": 8, "to": 2, "shape": "cosine"}},
    "dkd": {"name": "dkd", "warmup_epochs": 2},
    "dkd, standardized": {"name": "dkd", "warmup_epochs": 0, "standardize": True, "temperature": 2},
    "dist": {"name": "dist"},
    "dist, unlabelled": {"name": "dist", "preset": "cifar100", "hard_weight": 0},
    "bernoulli": {"name": "bernoulli", "alpha": 0},
    "mse": {"name": "mse", "alpha": 0},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_towards_the_teacher(inputs: dict[str, Path], tmp_path: Path, name: str) -> None:
    spec = spec_of(objective=OBJECTIVES[name], training={**TRAINING, "epochs": 2, "batch_size": 16})
    journal = UntilEvaluation()
    assert len(train_all(context_of(spec, inputs, tmp_path, journal=journal))) == 2
    first, last = (values for _, values in journal.metric_points)
    assert last["validation/loss"] < first["validation/loss"]
    assert last["validation/accuracy"] > 0.4


def test_an_objective_for_other_labels_is_told_before_anything_runs(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="multilabel labels"):
        run(context_of(spec_of(objective={"name": "bernoulli"}), inputs, tmp_path))


def test_unlabelled_data_are_distilled_from_the_teacher_alone(inputs: dict[str, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=load_digits().images[:400, None].astype(np.float32))
    out = tmp_path / "unlabelled"
    out.mkdir()
    declared = {"name": "digits", "files": {"data.npz": UPLOAD}, "transform": {"normalize": "auto"}}
    read_dataset(tmp_path, DatasetDeclaration.model_validate(declared), out, max_bytes=2**30)
    folders = {**inputs, DATASET: out}
    journal = UntilEvaluation(last="exporting")
    train_all(context_of(spec_of(objective={"alpha": 0.0}), folders, tmp_path / "work", journal=journal))
    told = journal.metric_points[-1][1]
    assert told["validation/kl"] < journal.metric_points[0][1]["validation/kl"]
    assert not any("accuracy" in name for name in told)
    with pytest.raises(Invalid, match="no labels"):
        run(context_of(spec_of(objective={"alpha": 0.5}), folders, tmp_path / "refused"))
