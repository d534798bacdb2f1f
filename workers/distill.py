"""The distillation job, from canonical inputs to an artifact.

    loading      the canonical inputs become a dataset, a teacher and an untrained student
    teacher      the teacher's logits are computed once for every split that training looks at
    training     the student learns from them
    control      the same student, from the same seed, learns from the labels alone (when asked for)
    evaluating   all models answer the held-out split, once, and are timed in alternation
    exporting    the chosen student, its report and its card become files
    verifying    a fresh process loads the files and must compute what the student computed

It may be interrupted anywhere and go on from its last checkpoint; see `workers.course`.
"""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from service.contract import compatibility
from service.contract.reports import Environment, Report
from service.contract.specs import Architecture, DistillSpec, ModelStudent
from workers.course import Course
from workers.distillation.objectives import labels_only, objective
from workers.distillation.teacher import Logits, teacher_logits
from workers.evaluation.artifact import verify_artifact, weights_size, write_artifact
from workers.evaluation.cost import measure_cost
from workers.evaluation.evaluation import evaluate
from workers.evaluation.latency import measure_latency
from workers.evaluation.report import build_report
from workers.formats.datasets import load_dataset
from workers.formats.graph_models import graph_facts
from workers.formats.models import facts_of, load_architecture, load_model
from workers.graph.layer_graph import LayerGraph
from workers.job import JobContext, JobResult
from workers.material import built, held_out, recorded_facts, redrawn, selection_of, student_architecture
from workers.training.data import Dataset, Split
from workers.training.learner import Loss
from workers.training.loop import train
from workers.training.outcome import State, TrainingOutcome

EVALUATION_BATCH = 256  # examples; a constant, since the last bits of sums depend on it
MAX_EXAMPLE_INPUTS = 64  # for timing, export and verification


def stages_of(spec: DistillSpec) -> tuple[str, ...]:
    """The names of the stages, in order."""
    control = ("control",) if spec.config.control else ()
    return ("loading", "teacher", "training", *control, "evaluating", "exporting", "verifying")


def distill(context: JobContext) -> JobResult:
    """Train a student to answer as its teacher does, and say how well it does."""
    return Distillation(context).run()


class Distillation:
    """One attempt at a distillation."""

    def __init__(self, context: JobContext) -> None:
        self.context, self.spec, self.journal = context, context.spec, context.journal
        choices = {
            "num_threads": context.num_threads,
            "device": context.device.type,
            "torch": str(torch.__version__),
        }
        self.course = Course(context.journal, context.work_dir, context.checkpoint, choices)
        torch.set_num_threads(self.course.choices["num_threads"])
        changed = [name for name in ("device", "torch") if self.course.choices[name] != choices[name]]
        for name in changed:
            text = f"resumed with {name} {choices[name]} after {self.course.choices[name]}: the last bits may differ"
            self.journal.event("warning", {"text": text})

    def run(self) -> JobResult:
        """Pass through all stages."""
        with self.course.stage("loading"):
            self._load()
        with self.course.stage("teacher"):
            logits = {} if self.course.outcome("student") else self._teacher_logits()
        with self.course.stage("training"):
            loss = objective(self.spec.config.objective)
            self.student = self._trained("student", loss, logits)
        self.control: TrainingOutcome | None = None
        if self.spec.config.control:
            with self.course.stage("control"):
                self.control = self._trained("control", labels_only(self.spec.config.objective), {}, series="control/")
        with self.course.stage("evaluating"):
            report = self._evaluate()
        with self.course.stage("exporting"):
            folder = self._export(report)
        with self.course.stage("verifying"):
            verify_artifact(folder, self.model, self.examples)
        return self._result(folder, report)

    def _load(self) -> None:
        spec, inputs = self.spec, self.context.inputs
        student_folder = inputs[spec.student.model] if isinstance(spec.student, ModelStudent) else None
        folders = {"teacher": inputs[spec.teacher], "dataset": inputs[spec.dataset], "student": student_folder}
        facts = {name: None if folder is None else recorded_facts(folder) for name, folder in folders.items()}
        compatibility.check(facts["teacher"] or {}, facts["dataset"] or {}, spec, facts["student"])
        self.dataset: Dataset = load_dataset(inputs[spec.dataset])
        self.teacher = load_model(inputs[spec.teacher])
        self.architecture = student_architecture(spec, inputs)
        self.new_student()  # what cannot be built is told before the teacher runs

    def new_student(self) -> nn.Module:
        """The student before its training, always with the same weights."""
        spec, seed = self.spec.student, self.context.seed
        if isinstance(spec, ModelStudent) and (self.architecture is None or not spec.reset):
            model = load_model(self.context.inputs[spec.model])
            return redrawn(model, seed) if spec.reset else model
        assert self.architecture is not None  # noqa: S101  only a model can come without one
        return built(self.architecture, seed)

    def _teacher_logits(self) -> dict[str, Logits]:
        context, teacher = self.context, self.teacher.to(self.context.device)
        splits: dict[str, Split | None] = {"train": self.dataset.train, "validation": self.dataset.validation}
        logits = {
            name: teacher_logits(
                teacher,
                split,
                context.work_dir / f"teacher-{name}.npy",
                device=context.device,
                batch_size=EVALUATION_BATCH,
                journal=self.journal,
            )
            for name, split in splits.items()
            if split is not None
        }
        self.teacher.cpu()  # its place on the device is the student's now
        return logits

    def _trained(self, name: str, loss: Loss, logits: Mapping[str, Logits], series: str = "") -> TrainingOutcome:
        done = self.course.outcome(name)
        if done is not None:
            return done
        outcome = train(
            self.new_student(),
            self.dataset,
            loss,
            self.spec.config.training,
            seed=self.context.seed,
            device=self.context.device,
            journal=self.journal,
            teacher_logits=logits,
            save=self.course.save,
            resume_from=self.course.training_state(),
            series=series,
        )
        self.course.finish(name, outcome, outcome.num_steps)
        return outcome

    def _with_state(self, state: State) -> nn.Module:
        model = self.new_student()
        model.load_state_dict(state)
        return model.to(self.context.device).eval()

    def _evaluate(self) -> Report:
        device, which = self.context.device, self.spec.config.training.select
        name, split = held_out(self.dataset)
        selection = selection_of(self.student, which)
        self.model = self._with_state(self.student.state(which))
        models = {"teacher": self.teacher.to(device), "student": self.model}
        if self.control is not None:
            models["control"] = self._with_state(self.control.state(which))
        architectures: dict[str, Architecture | None] = dict.fromkeys(models, self.architecture)
        architectures["teacher"] = load_architecture(self.context.inputs[self.spec.teacher])
        others = {} if selection.other is None else {"other": self._with_state(self.student.state(selection.other))}
        logits, labels = evaluate({**models, **others}, split, device, EVALUATION_BATCH, self.journal)
        self.examples, _ = split.batch(np.arange(min(len(split), MAX_EXAMPLE_INPUTS)), device)
        self.scaling = split.scaling
        return build_report(
            job_id=self.context.job_id,
            split=name,
            logits=logits,
            labels=labels,
            costs={role: measure_cost(model, self.dataset.input_shape) for role, model in models.items()},
            bytes_on_disk={role: weights_size(model, architectures[role]) for role, model in models.items()},
            latencies=measure_latency(models, self.examples, device=device),
            selection=selection,
            environment=self._environment(),
            stages=self.course.outcomes(),
        )

    def _environment(self) -> Environment:
        device = self.context.device
        versions = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
        return Environment(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            threads=torch.get_num_threads(),
            precision=self.student.precision,
            versions={"stillhouse": version("stillhouse"), **versions},
        )

    def _export(self, report: Report) -> Path:
        spec, folder = self.spec, self.context.work_dir / "artifact"
        student = {"student": spec.student.model} if isinstance(spec.student, ModelStudent) else {}
        control = {} if self.control is None else {"control": self.control.history}
        manifest = write_artifact(
            folder,
            model=self.model,
            architecture=self.architecture,
            report=report,
            history={"student": self.student.history, **control},
            spec=spec,
            seed=self.context.seed,
            lineage={"job": self.context.job_id, "teacher": spec.teacher, "dataset": spec.dataset, **student},
            example_inputs=self.examples,
            environment=report.environment,
            scaling=self.scaling,
        )
        if (reason := manifest["onnx"]["reason"]) is not None:
            self.journal.event("warning", {"text": f"the result has no model.onnx: {reason}"})
        return folder

    def _facts(self) -> dict[str, Any]:
        """What the record of the result says, as inspection would find it."""
        model = self.model.cpu()
        if self.architecture is None:
            assert isinstance(model, LayerGraph)  # noqa: S101  what has no architecture is a graph
            return graph_facts(model)
        return {**facts_of(self.architecture, model), "format": "safetensors", "notes": []}

    def _result(self, folder: Path, report: Report) -> JobResult:
        spec, architecture = self.spec, self.architecture
        what = spec.student.model if isinstance(spec.student, ModelStudent) else "student"
        name = f"{what if architecture is None else architecture.name} distilled from {spec.teacher}"
        return JobResult(
            folder=folder,
            name=name,
            declaration={
                "name": name,
                "architecture": None if architecture is None else architecture.model_dump(mode="json"),
                "labels": spec.labels,
            },
            facts=self._facts(),
            report=report.model_dump(mode="json"),
        )
