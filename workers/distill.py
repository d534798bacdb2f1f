"""The distillation job, from canonical inputs to an artifact.

    loading      the canonical inputs become a dataset, a teacher and an untrained student
    teacher      the teacher's logits are computed once for every split that training looks at
    shrinking    a student that is its teacher, smaller, is pruned and refitted (when asked for)
    training     the student learns from them
    control      the same student, from the same seed, learns from the labels alone (when asked for)
    evaluating   all models answer the held-out split, once, and are timed in alternation
    exporting    the chosen student becomes files
    verifying    a fresh process loads the files and must compute what the student computed; report and card say so

It may be interrupted anywhere and go on from its last checkpoint; see `workers.course`.
"""

from collections.abc import Mapping

from torch import nn

from service.contract import compatibility
from service.contract.prune_spec import PruneConfig, Target
from service.contract.reports import Report
from service.contract.specs import Architecture, DistillSpec, ModelStudent, ShrunkStudent
from workers.compression import EVALUATION_BATCH, Compression
from workers.distillation.objectives import labels_only, objective
from workers.distillation.teacher import Logits, teacher_logits
from workers.formats.datasets import load_dataset
from workers.formats.models import load_architecture, load_as_graph, load_model
from workers.job import JobContext, JobResult
from workers.material import built, recorded_facts, redrawn, selection_of, student_architecture
from workers.pruner import Pruner
from workers.pruning.schedule.pruned import Pruned
from workers.training.data import Split
from workers.training.learner import Loss
from workers.training.loop import train
from workers.training.outcome import State, TrainingOutcome


def stages_of(spec: DistillSpec) -> tuple[str, ...]:
    """The names of the stages, in order."""
    control = ("control",) if spec.config.control else ()
    shrinking = ("shrinking",) if isinstance(spec.student, ShrunkStudent) else ()
    return ("loading", *shrinking, "teacher", "training", *control, "evaluating", "exporting", "verifying")


def distill(context: JobContext[DistillSpec]) -> JobResult:
    """Train a student to answer as its teacher does, and say how well it does."""
    return Distillation(context).run()


class Distillation(Compression[DistillSpec]):
    """One attempt at a distillation."""

    shrunk: Pruned | None = None  # the student before its training, where it is the teacher, smaller

    def run(self) -> JobResult:
        """Pass through all stages."""
        with self.course.stage("loading"):
            self._load()
        if isinstance(self.spec.student, ShrunkStudent):
            self.shrunk = self._shrunk(self.spec.student)
        else:
            self.new_student()  # what cannot be built is told before the teacher runs
        with self.course.stage("teacher"):
            logits = {} if self.course.recall("student") else self._teacher_logits()
        with self.course.stage("training"):
            loss = objective(self.spec.config.objective)
            self.student = self._trained("student", loss, logits)
            self.precision = self.student.precision
        self.control: TrainingOutcome | None = None
        if self.spec.config.control:
            with self.course.stage("control"):
                self.control = self._trained("control", labels_only(self.spec.config.objective), {}, series="control/")
        with self.course.stage("evaluating"):
            report = self._evaluate()
        with self.course.stage("exporting"):
            folder, without_onnx = self.exported()
        with self.course.stage("verifying"):
            report = self.documented(folder, report, without_onnx, self._history(), self._lineage())
        made = self._made_of()
        return self.result(folder, report, f"{made} distilled from {self.spec.teacher}")

    def _load(self) -> None:
        spec, inputs = self.spec, self.context.inputs
        student_folder = inputs[spec.student.model] if isinstance(spec.student, ModelStudent) else None
        folders = {"teacher": inputs[spec.teacher], "dataset": inputs[spec.dataset], "student": student_folder}
        facts = {name: None if folder is None else recorded_facts(folder) for name, folder in folders.items()}
        compatibility.check(facts["teacher"] or {}, facts["dataset"] or {}, spec, facts["student"])
        self.dataset = load_dataset(inputs[spec.dataset])
        self.teacher = load_model(inputs[spec.teacher])
        self.architecture = student_architecture(spec, inputs)

    def _shrunk(self, student: ShrunkStudent) -> Pruned:
        """The teacher's own graph, pruned and refitted."""
        config = PruneConfig(target=Target(**student.shrink))
        graph = load_as_graph(self.context.inputs[self.spec.teacher]).to(self.context.device)
        spared = max(config.calibration.examples, 0 if config.refit is None else config.refit.examples)
        pruner = Pruner(self.context, self.course, graph, self.dataset, spared)
        return pruner.run("shrunk", config, stage="shrinking", keeps_states=False).outcome.pruned

    def new_student(self) -> nn.Module:
        """The student before its training, always with the same weights."""
        if self.shrunk is not None:
            return self.shrunk.copy().network.cpu()
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
        done = self.course.recall(name)
        if done is not None:
            return TrainingOutcome.from_plain(done)
        outcome = train(
            self.new_student(),
            self.dataset,
            loss,
            self.spec.config.training,
            seed=self.context.seed,
            device=self.context.device,
            journal=self.journal,
            teacher_logits=logits,
            save=lambda state: self.course.save(name, state),
            resume_from=self.course.state_of(name),
            series=series,
        )
        self.course.remember(name, outcome.plain(), outcome.num_steps)
        return outcome

    def _with_state(self, state: State) -> nn.Module:
        model = self.new_student()
        model.load_state_dict(state)
        return model.to(self.context.device).eval()

    def _evaluate(self) -> Report:
        which = self.spec.config.training.select
        selection = selection_of(self.student, which)
        self.model = self._with_state(self.student.state(which))
        models = {"teacher": self.teacher.to(self.context.device), "student": self.model}
        if self.control is not None:
            models["control"] = self._with_state(self.control.state(which))
        architectures: dict[str, Architecture | None] = dict.fromkeys(models, self.architecture)
        architectures["teacher"] = load_architecture(self.context.inputs[self.spec.teacher])
        other = None if selection.other is None else self._with_state(self.student.state(selection.other))
        return self.evaluated(models, architectures, other=other, selection=selection)

    def _made_of(self) -> str:
        student = self.spec.student
        if isinstance(student, ShrunkStudent):
            return f"{self.spec.teacher} shrunk and"
        if isinstance(student, ModelStudent) and self.architecture is None:
            return student.model
        return "student" if self.architecture is None else self.architecture.name

    def _history(self) -> dict[str, tuple[dict[str, float], ...]]:
        control = {} if self.control is None else {"control": self.control.history}
        return {"student": self.student.history, **control}

    def _lineage(self) -> dict[str, str]:
        spec = self.spec
        student = {"student": spec.student.model} if isinstance(spec.student, ModelStudent) else {}
        return {"teacher": spec.teacher, "dataset": spec.dataset, **student}
