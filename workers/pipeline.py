"""From a job's canonical inputs to its result: what each type of job does, stage by stage.

    loading      the canonical inputs become a dataset, a teacher and an untrained student
    teacher      the teacher's logits are computed once for every split that training looks at
    training     the student learns from them
    control      the same student, from the same seed, learns from the labels alone (when asked for)
    evaluating   all models answer the held-out split, once, and are timed in alternation
    exporting    the chosen student, its report and its card become files
    verifying    a fresh process loads the files and must compute what the student computed

A job may be interrupted anywhere and go on from its last checkpoint; see `workers.course`.
"""

import copy
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from service.contract import compatibility
from service.contract.errors import FieldError, InputRejected, Invalid, NotAvailable
from service.contract.reports import Environment, Report, Selection
from service.contract.specs import Architecture, ArchitectureStudent, DistillSpec, JobSpec, ModelStudent
from workers.course import Course
from workers.distillation.objectives import labels_only, objective
from workers.distillation.teacher import Logits, teacher_logits
from workers.evaluation.artifact import weights_size, write_artifact
from workers.evaluation.cost import measure_cost
from workers.evaluation.evaluation import evaluate
from workers.evaluation.latency import measure_latency
from workers.evaluation.report import build_report
from workers.formats.datasets import load_dataset
from workers.formats.models import facts_of, load_architecture, load_model
from workers.journal import Journal
from workers.students.architectures import build
from workers.training.data import Dataset, Split
from workers.training.learner import Loss
from workers.training.loop import train
from workers.training.outcome import State, TrainingOutcome

EVALUATION_BATCH = 256  # examples; a constant, since the last bits of sums depend on it


@dataclass(frozen=True)
class JobContext:
    """One attempt at a job."""

    job_id: str
    spec: DistillSpec
    inputs: Mapping[str, Path]  # canonical folders by the ids that the spec names
    work_dir: Path  # for files of this attempt
    seed: int
    device: torch.device
    num_threads: int
    checkpoint: Path | None  # to resume from
    journal: Journal


@dataclass(frozen=True)
class JobResult:
    """What a job made: a model's files, and what its record is to say."""

    folder: Path
    name: str
    declaration: dict[str, Any]
    facts: dict[str, Any]
    report: dict[str, Any]


def stages_of(spec: JobSpec) -> tuple[str, ...]:
    """The names of a job's stages, in order."""
    control = ("control",) if spec.config.control else ()
    return ("loading", "teacher", "training", *control, "evaluating", "exporting", "verifying")


def distill(context: JobContext) -> JobResult:
    """Train a student to answer as its teacher does, and say how well it does."""
    return Distillation(context).run()


PIPELINES: dict[str, Callable[[JobContext], JobResult]] = {"distill": distill}


class Distillation:
    """One attempt at a distillation."""

    def __init__(self, context: JobContext) -> None:
        self.context, self.spec, self.journal = context, context.spec, context.journal
        choices = {"num_threads": context.num_threads, "device": context.device.type, "torch": torch.__version__}
        self.course = Course(context.journal, context.work_dir, context.checkpoint, json.loads(json.dumps(choices)))
        self._warn_of_other_bits(choices)
        torch.set_num_threads(self.course.choices["num_threads"])

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
            self._verify(folder)
        return self._result(folder, report)

    def _warn_of_other_bits(self, choices: Mapping[str, Any]) -> None:
        recorded = self.course.choices
        changed = [f"{name} {recorded[name]} -> {now}" for name, now in choices.items() if recorded.get(name) != now]
        if changed and recorded["num_threads"] == choices["num_threads"]:
            text = f"resumed under other conditions ({', '.join(changed)}): the result may differ in its last bits"
            self.journal.event("warning", {"text": text})
