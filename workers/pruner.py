"""Pruning as jobs do it: criteria, repairs and judgements put together from a spec, and a schedule that is resumed.

way = Pruner(context, course, teacher, dataset, spared).run("pruned", config)
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from service.contract.criteria import OutputKl
from service.contract.errors import Invalid
from service.contract.prune_spec import Interleaved, PruneConfig, Refit
from workers.course import Course
from workers.distillation.teacher import Logits, teacher_logits
from workers.graph.groups import Groups, find_groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.unit_cost import Kept
from workers.job import JobContext
from workers.pruning.calibration import Calibration, drawn
from workers.pruning.criteria.criteria import score
from workers.pruning.reads import find_reads
from workers.pruning.repair.folding import fold_means
from workers.pruning.repair.refit import refit
from workers.pruning.schedule.pruned import Pruned, carry_weights
from workers.pruning.schedule.schedule import Judgement, Outcome, prune
from workers.pruning.schedule.steps import Step
from workers.pruning.schedule.unit_latency import LatencyProbe
from workers.pruning.scores import Scores
from workers.training.data import Dataset, Split
from workers.training.validation import validate

BATCH = 256  # examples; a constant, since the last bits of sums depend on it
MEMORY_BYTES = 2**30  # for intermediate values of scores and refits

States = dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Way:
    """A pruning that is complete, and the networks on the way by their steps' numbers."""

    outcome: Outcome
    states: States

    def plain(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        outcome = self.outcome
        return {
            "pruned": outcome.pruned.state(),
            "steps": [step.plain() for step in outcome.steps],
            "reason": outcome.reason,
            "reach": outcome.reach,
            "whole": dataclasses.asdict(outcome.whole),
            "on_the_way": self.states,
        }

    @classmethod
    def from_plain(cls, teacher: LayerGraph, groups: Groups, plain: Mapping[str, Any]) -> "Way":
        """What a checkpoint holds."""
        outcome = Outcome(
            pruned=Pruned.from_state(teacher, groups, plain["pruned"]),
            steps=tuple(Step.from_plain(step) for step in plain["steps"]),
            reason=plain["reason"],
            reach=plain["reach"],
            whole=Judgement(**plain["whole"]),
        )
        return cls(outcome, plain["on_the_way"])


class Pruner:
    """Prunes one teacher, as often and in as many ways as a job wants."""

    def __init__(
        self, context: JobContext[Any], course: Course, teacher: LayerGraph, dataset: Dataset, spared: int
    ) -> None:
        """`teacher` is on the job's device; `spared` training inputs are not judged on, since others look at them.

        Raises Invalid for a dataset without a training split.
        """
        if dataset.train is None:
            raise Invalid("the dataset has no training split, from which calibration inputs are drawn; give it one")
        self.context, self.course, self.journal = context, course, context.journal
        self.teacher, self.groups = teacher, find_groups(teacher)
        self.train: Split = dataset.train
        self.judged_on, self.judging = self._judging_split(dataset.validation, spared)
        self.told: set[str] = set()

    def _judging_split(self, validation: Split | None, spared: int) -> tuple[str, Split]:
        """Where steps are judged: the validation split, or else training inputs that nothing else looks at."""
        if validation is not None:
            return "validation", validation
        rest = self._calibration(len(self.train)).positions[spared:]
        rows = self.train.rows[np.sort(rest[: spared or None])] if len(rest) else self.train.rows
        return "train", dataclasses.replace(self.train, rows=rows)

    def logits(self, name: str, split: Split) -> Logits:
        """The teacher's on a split, computed once."""
        return teacher_logits(
            self.teacher,
            split,
            self.context.work_dir / f"teacher-{name}.npy",
            device=self.context.device,
            batch_size=BATCH,
            journal=self.journal,
        )

    def _calibration(self, examples: int) -> Calibration:
        return drawn(self.train, examples, self.context.seed, self.context.device)

    def run(
        self, name: str, config: PruneConfig, *, stage: str | None = None, series: str = "", keeps_states: bool = True
    ) -> Way:
        """What the schedule makes of the teacher, found or made; `stage` names all of it, where it is one stage.

        `series` comes before the names of its metrics; `keeps_states`: whether the networks on the way are wanted.
        """
        done = self.course.recall(name)
        if done is not None:
            return Way.from_plain(self.teacher, self.groups, done)
        state = self.course.state_of(name)
        states: States = {} if state is None else dict(state["on_the_way"])

        def keep(step: Step, pruned: Pruned) -> None:
            if keeps_states:
                states[step.index] = pruned.state()

        outcome = prune(
            self.teacher,
            self.groups,
            config,
            score=self._criterion(config),
            judge=self.judge,
            refit=self._repair(config),
            journal=self.journal,
            stopwatch=self._stopwatch(),
            save=lambda state: self.course.save(name, {**state, "on_the_way": states}),
            resume_from=state,
            stage=lambda each: self.course.stage(stage or each),
            keep_intermediate=keep,
            series=series,
        )
        way = Way(outcome, states)
        self.course.remember(name, way.plain(), len(outcome.steps))
        return way

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
                seed=int(np.random.SeedSequence([self.context.seed, step]).generate_state(1)[0]),
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
        return torch.cat([self.teacher(batch.x) for batch in calibration.batches(BATCH)])

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
                seed=self.context.seed,
            )

        return repair

    def judge(self, network: nn.Module) -> Judgement:
        """How far a network is from its teacher where steps are judged."""
        means = validate(
            network,
            self.judging,
            lambda logits, _taught, _labels: logits.new_zeros(()),
            self.logits("judging", self.judging),
            batch_size=BATCH,
            precision="float32",
            device=self.context.device,
            journal=self.journal,
        )
        return Judgement(means["validation/kl"], means.get("validation/accuracy"))

    def _stopwatch(self) -> LatencyProbe:
        example, _ = self.train.batch(np.arange(min(2, len(self.train))), self.context.device)
        return LatencyProbe(self.teacher, self.groups, example, self.context.device, self.journal)
