"""The pruning job, from canonical inputs to an artifact.

    loading      the canonical inputs become a dataset and a graph of layers, whose units are found
    scoring      the criterion judges the units          )
    removing     those of least worth go                 ) as often as the schedule wants
    refitting    what read them is solved for anew,      )
                 or given their means as biases
    recovering   the small network is distilled from the one that the job began with (when asked for)
    controls     other criteria, and new weights, take the same way to the same cost (when asked for)
    evaluating   all models answer the held-out split, once, and are timed in alternation
    exporting    the result, and every network on the way to it, become files
    verifying    a fresh process loads the files and must compute what the result computes; report and card say so

It may be interrupted anywhere and go on from its last checkpoint; see `workers.course`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from service.contract import compatibility
from service.contract.criteria import L2, Criterion, RandomOrder, Taylor
from service.contract.prune_spec import Absolute, PruneSpec, Target
from service.contract.reports import GroupOutcome, GroupScores, PruningStep, Report, StageOutcome
from service.contract.reports import Pruning as PruningReport
from workers.compression import Compression
from workers.distillation.objectives import labels_only, objective
from workers.distillation.teacher import Logits
from workers.evaluation.placement import on_cpu
from workers.formats.artifacts import export_program
from workers.formats.datasets import load_dataset
from workers.formats.models import load_architecture, load_as_graph
from workers.graph.layer_graph import LayerGraph
from workers.graph.redrawing import redraw
from workers.graph.surgery import remove
from workers.job import JobContext, JobResult
from workers.material import recorded_facts, selection_of
from workers.pruner import Pruner
from workers.pruning.schedule.pruned import Pruned
from workers.pruning.schedule.schedule import Judgement
from workers.pruning.schedule.steps import Step
from workers.training.learner import Loss
from workers.training.loop import train
from workers.training.outcome import TrainingOutcome

CONTROLS: Mapping[str, Criterion] = {
    "random": RandomOrder(name="random"),
    "l2": L2(name="l2"),
    "taylor": Taylor(name="taylor"),
}


def stages_of(spec: PruneSpec) -> tuple[str, ...]:
    """The names of the stages, in order; those of a schedule in steps come again and again."""
    config = spec.config
    refitting = () if config.refit is None and not config.fold_means else ("refitting",)
    recovering = () if config.recovery is None else ("recovering",)
    controls = ("controls",) if config.controls else ()
    steps = ("scoring", "removing", *refitting)
    return ("loading", *steps, *recovering, *controls, "evaluating", "exporting", "verifying")


def prune_job(context: JobContext[PruneSpec]) -> JobResult:
    """Remove the units that a network needs least, and say what that did to it."""
    return Pruning(context).run()


class Pruning(Compression[PruneSpec]):
    """One attempt at a pruning job."""

    teacher: LayerGraph

    def run(self) -> JobResult:
        """Pass through all stages."""
        with self.course.stage("loading"):
            self._load()
        self.way = self.pruner.run("pruned", self.spec.config)
        self.outcome = self.way.outcome
        self.recovered = self._recovered()
        controls = self._controls()
        with self.course.stage("evaluating"):
            report = self._evaluate(controls)
        with self.course.stage("exporting"):
            folder, without_onnx = self.exported()
            self._export_steps(folder)
        with self.course.stage("verifying"):
            history = {} if self.recovered is None else {"student": self.recovered.history}
            lineage = {"teacher": self.spec.model, "dataset": self.spec.dataset}
            report = self.documented(folder, report, without_onnx, history, lineage)
        return self.result(folder, report, f"{self.spec.model} pruned")

    # Loading -------------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        spec, inputs, device = self.spec, self.context.inputs, self.context.device
        model, data = inputs[spec.model], inputs[spec.dataset]
        compatibility.check_pruning(recorded_facts(model), recorded_facts(data), spec)
        self.dataset = load_dataset(data)
        self.teacher_architecture = load_architecture(model)
        self.teacher = load_as_graph(model).to(device)
        config = spec.config
        seen = max(config.calibration.examples, 0 if config.refit is None else config.refit.examples)
        self.pruner = Pruner(self.context, self.course, self.teacher, self.dataset, spared=seen)
        self.groups = self.pruner.groups

    # After it ------------------------------------------------------------------------------------------------------

    def _recovered(self) -> TrainingOutcome | None:
        """The distillation of the small network; `model` is the result from here on."""
        recovery = self.spec.config.recovery
        self.model = self.outcome.pruned.copy().network  # training changes it, and what is kept of the way stays
        if recovery is None:
            return None
        with self.course.stage("recovering"):
            trained = self._trained("recovered", self.model, objective(recovery.objective), taught=True)
        self.precision = trained.precision
        return trained

    def _trained(
        self, name: str, network: LayerGraph, loss: Loss, *, taught: bool, series: str = ""
    ) -> TrainingOutcome:
        """Train `network`, in place, as the recovery is trained."""
        recovery = self.spec.config.recovery
        assert recovery is not None  # noqa: S101  asked by the callers
        done = self.course.recall(name)
        outcome = None if done is None else TrainingOutcome.from_plain(done)
        if outcome is None:
            outcome = train(
                network,
                self.dataset,
                loss,
                recovery.training,
                seed=self.context.seed,
                device=self.context.device,
                journal=self.journal,
                teacher_logits=self._taught() if taught else {},
                save=lambda state: self.course.save(name, state),
                resume_from=self.course.state_of(name),
                series=series,
            )
            self.course.remember(name, outcome.plain(), outcome.num_steps)
        network.load_state_dict(outcome.state(recovery.training.select))
        network.to(self.context.device).eval()
        return outcome

    def _taught(self) -> dict[str, Logits]:
        splits = {"train": self.dataset.train, "validation": self.dataset.validation}
        return {name: self.pruner.logits(name, split) for name, split in splits.items() if split is not None}

    def _controls(self) -> dict[str, nn.Module]:
        """Networks of the same cost by other ways."""
        config = self.spec.config
        found: dict[str, nn.Module] = {}
        if not config.controls:
            return {}
        with self.course.stage("controls"):
            macs = self.outcome.pruned.size.macs
            for name in config.controls:
                found[name] = self._scratch() if name == "scratch" else self._control(name, macs)
        return found

    def _control(self, name: str, macs: int) -> nn.Module:
        """Another criterion, with the same schedule, allocation, refit and recovery, to the same MACs."""
        config = self.spec.config
        if not self.outcome.steps:
            return self.outcome.pruned.copy().network  # nothing went, and nothing is to go
        changes = {"criterion": CONTROLS[name], "target": Target(macs=Absolute(absolute=macs)), "controls": ()}
        limited = config.model_copy(update=changes)
        way = self.pruner.run(f"control-{name}", limited, stage="controls", series=f"{name}/", keeps_states=False)
        network = way.outcome.pruned.copy().network
        if config.recovery is not None:
            loss = objective(config.recovery.objective)
            self._trained(f"control-{name}-recovered", network, loss, taught=True, series=f"{name}/")
        return network

    def _scratch(self) -> nn.Module:
        """The same small network, its weights drawn anew and trained on the labels for as long as the recovery."""
        recovery = self.spec.config.recovery
        assert recovery is not None  # noqa: S101  the spec demands it
        network = self.outcome.pruned.copy().network
        redraw(network, self.context.seed)
        self._trained("control-scratch", network, labels_only(recovery.objective), taught=False, series="scratch/")
        return network

    # The end -------------------------------------------------------------------------------------------------------

    def _evaluate(self, controls: Mapping[str, nn.Module]) -> Report:
        recovery, recovered = self.spec.config.recovery, self.recovered
        selection = other = None
        if recovery is not None and recovered is not None:
            selection = selection_of(recovered, recovery.training.select)
            if selection.other is not None:
                network = self.outcome.pruned.copy().network
                network.load_state_dict(recovered.state(selection.other))
                other = network.to(self.context.device).eval()
        models = {"teacher": self.teacher, "student": self.model, **controls}
        report = self.evaluated(
            models,
            {"teacher": self.teacher_architecture},
            other=other,
            selection=selection,
            pruning=self._told_of_pruning(),
        )
        return report.model_copy(update={"stages": self._stages()})

    def _stages(self) -> tuple[StageOutcome, ...]:
        """What each stage took, and where the network stood after it, on the split on which steps are judged."""
        removed = remove(self.teacher, self.outcome.pruned.gone, self.groups).eval()
        stood = {"loading": self.outcome.whole, "removing": self.pruner.judge(removed)}
        if self.outcome.steps:
            last = self.outcome.steps[-1]
            stood["refitting"] = Judgement(last.kl, last.accuracy)
        if self.recovered is not None:
            stood["recovering"] = self.pruner.judge(self.model)
        return tuple(
            stage.model_copy(update={"kl": stood[stage.name].kl, "accuracy": stood[stage.name].accuracy})
            if stage.name in stood
            else stage
            for stage in self.course.outcomes()
        )

    def _told_of_pruning(self) -> PruningReport:
        outcome = self.outcome
        return PruningReport(
            split=self.pruner.judged_on,
            criterion=self.spec.config.criterion.name,
            stopped_by=outcome.reason,
            reach=outcome.reach,
            groups=tuple(
                GroupOutcome(
                    name=name,
                    kind=group.kind,
                    units_before=group.num_units,
                    units_after=outcome.pruned.num_left(name),
                    macs_per_unit=group.macs_per_unit,
                    parameters_per_unit=group.parameters_per_unit,
                )
                for name, group in self.groups.items()
            ),
            steps=tuple(told_of(step) for step in outcome.steps),
        )

    def _export_steps(self, folder: Path) -> None:
        """Write every network on the way as a program of its own; the last of them is the result before recovery."""
        examples = self.examples.cpu()
        examples = examples.repeat(2, *[1] * (examples.dim() - 1)) if len(examples) == 1 else examples
        for place, (index, state) in enumerate(sorted(self.way.states.items())):
            network = Pruned.from_state(self.teacher, self.groups, state).network
            export_program(on_cpu(network), examples, folder / step_file(index))
            self.journal.progress(place + 1, len(self.way.states))
            self.journal.check()


def step_file(index: int) -> str:
    """Under which name a network on the way is among the result's files."""
    return f"step-{index:03}.pt2"


def told_of(step: Step) -> PruningStep:
    """A step as the report tells of it."""
    return PruningStep(
        index=step.index,
        macs=round(step.costs.macs),
        parameters=round(step.costs.params),
        bytes=round(step.costs.bytes),
        seconds=step.costs.latency or None,
        kl=step.kl,
        accuracy=step.accuracy,
        allocation=step.candidate,
        calibration_examples=step.examples,
        undecided=step.undecided,
        groups={name: GroupScores(**dataclasses.asdict(group)) for name, group in step.groups.items()},
        refit=None if step.refit is None else dict(step.refit),
        notes=step.notes,
        file=step_file(step.index),
    )
