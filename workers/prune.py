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
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from service.contract import compatibility
from service.contract.criteria import L2, Criterion, OutputKl, RandomOrder, Taylor
from service.contract.errors import Invalid
from service.contract.prune_spec import Absolute, Interleaved, PruneConfig, PruneSpec, Refit, Target
from service.contract.reports import GroupOutcome, GroupScores, PruningStep, Report, StageOutcome
from service.contract.reports import Pruning as PruningReport
from workers.compression import EVALUATION_BATCH, Compression
from workers.distillation.objectives import labels_only, objective
from workers.distillation.teacher import Logits, teacher_logits
from workers.evaluation.placement import on_cpu
from workers.formats.artifacts import export_program
from workers.formats.datasets import load_dataset
from workers.formats.models import load_architecture, load_as_graph
from workers.graph.groups import Groups, find_groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.redrawing import redraw
from workers.graph.surgery import remove
from workers.graph.unit_cost import Kept
from workers.job import JobContext, JobResult
from workers.material import recorded_facts, selection_of
from workers.pruning.calibration import Calibration, drawn
from workers.pruning.criteria import score
from workers.pruning.folding import fold_means
from workers.pruning.pruned import Pruned, carry_weights
from workers.pruning.reads import find_reads
from workers.pruning.refit import refit
from workers.pruning.schedule import Judgement, Outcome, prune
from workers.pruning.scores import Scores
from workers.pruning.steps import Step
from workers.pruning.unit_latency import LatencyProbe
from workers.training.data import Split
from workers.training.learner import Loss
from workers.training.loop import train
from workers.training.outcome import TrainingOutcome
from workers.training.validation import validate

MEMORY_BYTES = 2**30  # for intermediate values of scores and refits
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
    on_the_way: dict[int, dict[str, Any]]  # the networks between teacher and result, by their steps' numbers

    def run(self) -> JobResult:
        """Pass through all stages."""
        with self.course.stage("loading"):
            self._load()
        self.outcome = self._pruned("pruned", self.spec.config)
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
        self.groups: Groups = find_groups(self.teacher)
        if self.dataset.train is None:
            raise Invalid("the dataset has no training split, from which calibration inputs are drawn; give it one")
        self.train: Split = self.dataset.train
        self.judged_on, self.judging = self._judging_split()
        self.told: set[str] = set()

    def _judging_split(self) -> tuple[str, Split]:
        """Where steps are judged: the validation split, or else training inputs that calibration does not see."""
        if self.dataset.validation is not None:
            return "validation", self.dataset.validation
        config = self.spec.config
        used = max(config.calibration.examples, 0 if config.refit is None else config.refit.examples)
        rest = drawn(self.train, len(self.train), self.spec.seed, self.context.device).positions[used:]
        rows = self.train.rows[np.sort(rest[: used or None])] if len(rest) else self.train.rows
        return "train", dataclasses.replace(self.train, rows=rows)

    def _logits(self, name: str, split: Split) -> Logits:
        return teacher_logits(
            self.teacher,
            split,
            self.context.work_dir / f"teacher-{name}.npy",
            device=self.context.device,
            batch_size=EVALUATION_BATCH,
            journal=self.journal,
        )

    def _calibration(self, examples: int) -> Calibration:
        return drawn(self.train, examples, self.spec.seed, self.context.device)

    # Pruning -------------------------------------------------------------------------------------------------------

    def _pruned(self, name: str, config: PruneConfig, stage: str | None = None) -> Outcome:
        """What the schedule makes of the teacher, found or made; `stage` names all of it, where it is one stage."""
        done = self.course.recall(name)
        if done is not None:
            self.on_the_way = done["on_the_way"]
            return self._outcome(done)
        state = self.course.state_of(name)
        self.on_the_way = {} if state is None else dict(state["on_the_way"])
        taught = self._logits("judging", self.judging)
        outcome = prune(
            self.teacher,
            self.groups,
            config,
            score=self._criterion(config),
            judge=lambda network: self._judge(network, taught),
            refit=self._repair(config),
            journal=self.journal,
            stopwatch=self._stopwatch(),
            save=lambda state: self.course.save(name, {**state, "on_the_way": self.on_the_way}),
            resume_from=state,
            stage=lambda each: self.course.stage(stage or each),
            keep_intermediate=self._keep,
        )
        self.course.remember(name, {**plain_outcome(outcome), "on_the_way": self.on_the_way}, len(outcome.steps))
        return outcome

    def _outcome(self, plain: Mapping[str, Any]) -> Outcome:
        return Outcome(
            pruned=Pruned.from_state(self.teacher, self.groups, plain["pruned"]),
            steps=tuple(Step.from_plain(step) for step in plain["steps"]),
            reason=plain["reason"],
            reach=plain["reach"],
            whole=Judgement(**plain["whole"]),
        )

    def _criterion(self, config: PruneConfig) -> Any:
        """The criterion as the schedule asks it, with what the spec leaves open."""
        calibration = self._calibration(config.calibration.examples)
        criterion = config.criterion
        interleaved = isinstance(config.schedule, Interleaved)
        if isinstance(criterion, OutputKl) and criterion.reference is None:
            criterion = criterion.model_copy(update={"reference": "current" if interleaved else "teacher"})
        by_teacher = isinstance(criterion, OutputKl) and criterion.reference == "teacher"
        reference = self._reference(calibration) if by_teacher else None

        def judge_units(
            network: LayerGraph, groups: Groups, *, step: int, expected_removed: Mapping[str, int]
        ) -> Scores:
            scores = score(
                network,
                groups,
                find_reads(groups),
                calibration,
                criterion,
                reference=reference,
                seed=int(np.random.SeedSequence([self.spec.seed, step]).generate_state(1)[0]),
                memory_bytes=MEMORY_BYTES,
                journal=self.journal,
                expected_removed=expected_removed,
            )
            self._tell(scores.notes)
            return scores

        return judge_units

    def _tell(self, notes: tuple[str, ...]) -> None:
        for note in notes:
            if note not in self.told:
                self.told.add(note)
                self.journal.event("warning", {"text": note})

    @torch.no_grad()
    def _reference(self, calibration: Calibration) -> Tensor:
        """The teacher's logits on the calibration inputs, (N, K)."""
        return torch.cat([self.teacher(batch.x) for batch in calibration.batches(EVALUATION_BATCH)])

    def _repair(self, config: PruneConfig) -> Any:
        """What mends a network whose units went: the refit, or else folded means; None where neither is wanted."""
        if config.refit is not None:
            return self._refitter(config.refit)
        return self._folder(config.calibration.examples) if config.fold_means else None

    def _folder(self, examples: int) -> Any:
        calibration = self._calibration(examples)

        def fold(teacher: LayerGraph, student: LayerGraph, groups: Groups, kept: Kept) -> dict[str, Any]:
            # From the teacher's own weights, since means of earlier steps may have been folded in already.
            carry_weights(teacher, student, groups.reading.ledger.slots, np.ones_like(kept), kept)
            left = fold_means(teacher, student, groups, kept, calibration, self.journal)
            return {"folded_means": True, "layers_without_a_bias": list(left)}

        return fold

    def _refitter(self, options: Refit) -> Any:
        calibration = self._calibration(options.examples)

        def repair(teacher: LayerGraph, student: LayerGraph, groups: Groups, kept: Kept) -> Any:
            return refit(
                teacher,
                student,
                groups,
                kept,
                calibration,
                options.ridge,
                memory_bytes=MEMORY_BYTES,
                journal=self.journal,
                seed=self.spec.seed,
            )

        return repair

    def _judge(self, network: nn.Module, taught: Logits) -> Judgement:
        """How far a network is from its teacher where steps are judged."""
        means = validate(
            network,
            self.judging,
            lambda logits, _taught, _labels: logits.new_zeros(()),
            taught,
            batch_size=EVALUATION_BATCH,
            precision="float32",
            device=self.context.device,
            journal=self.journal,
        )
        return Judgement(means["validation/kl"], means.get("validation/accuracy"))

    def _stopwatch(self) -> LatencyProbe:
        example, _ = self.train.batch(np.arange(min(2, len(self.train))), self.context.device)
        return LatencyProbe(self.teacher, self.groups, example, self.context.device, self.journal)

    def _keep(self, step: Step, pruned: Pruned) -> None:
        self.on_the_way[step.index] = pruned.state()

    # After it ------------------------------------------------------------------------------------------------------

    def _recovered(self) -> TrainingOutcome | None:
        """The distillation of the small network; `model` is the result from here on."""
        recovery = self.spec.config.recovery
        self.model = self.outcome.pruned.network
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
        splits = {"train": self.train, "validation": self.dataset.validation}
        return {name: self._logits(name, split) for name, split in splits.items() if split is not None}

    def _controls(self) -> dict[str, nn.Module]:
        """Networks of the same cost by other ways."""
        config = self.spec.config
        found: dict[str, nn.Module] = {}
        if not config.controls:
            return {}
        kept = self.on_the_way
        with self.course.stage("controls"):
            macs = self.outcome.pruned.size.macs
            for name in config.controls:
                found[name] = self._scratch() if name == "scratch" else self._control(name, macs)
        self.on_the_way = kept
        return found

    def _control(self, name: str, macs: int) -> nn.Module:
        """Another criterion, with the same schedule, allocation, refit and recovery, to the same MACs."""
        config = self.spec.config
        changes = {"criterion": CONTROLS[name], "target": Target(macs=Absolute(absolute=macs)), "controls": ()}
        outcome = self._pruned(f"control-{name}", config.model_copy(update=changes), stage="controls")
        network = outcome.pruned.network
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
        taught = self._logits("judging", self.judging)
        removed = remove(self.teacher, self.outcome.pruned.gone, self.groups).eval()
        stood = {"loading": self.outcome.whole, "removing": self._judge(removed, taught)}
        if self.outcome.steps:
            last = self.outcome.steps[-1]
            stood["refitting"] = Judgement(last.kl, last.accuracy)
        if self.recovered is not None:
            stood["recovering"] = self._judge(self.model, taught)
        return tuple(
            stage.model_copy(update={"kl": stood[stage.name].kl, "accuracy": stood[stage.name].accuracy})
            if stage.name in stood
            else stage
            for stage in self.course.outcomes()
        )

    def _told_of_pruning(self) -> PruningReport:
        outcome = self.outcome
        return PruningReport(
            split=self.judged_on,
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
        for place, (index, state) in enumerate(sorted(self.on_the_way.items())):
            network = Pruned.from_state(self.teacher, self.groups, state).network
            export_program(on_cpu(network), examples, folder / step_file(index))
            self.journal.progress(place + 1, len(self.on_the_way))
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


def plain_outcome(outcome: Outcome) -> dict[str, Any]:
    """What a checkpoint holds of a pruning that is complete."""
    return {
        "pruned": outcome.pruned.state(),
        "steps": [step.plain() for step in outcome.steps],
        "reason": outcome.reason,
        "reach": outcome.reach,
        "whole": dataclasses.asdict(outcome.whole),
    }
