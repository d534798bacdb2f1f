"""The course of a pruning: judge the units, remove some, repair the rest, and again.

    one_shot      judge once, remove everything at once, refit once
    iterative     judge again after each step; refit once, at the end
    interleaved   remove a step, refit, judge the network as it is now, and again

A step is tried with one allocation or several; of several the network that is nearest to the teacher on the
validation split, by KL, is taken (refitted first, where the schedule refits). Where limits are set, a network that
breaks one is dropped: steps are halved a few times to come nearer to the limit, one_shot bisects between what holds
and what does not; the last network that holds is the result. An iterative schedule with limits judges, at every
step, a refitted copy, since that is what would come out; it goes on from the network itself.

Everything that was found out is in the state. It may be saved after every score, removal, refit and judgement, and
is when the journal says so, when a stop is asked for, and after every measured time, which a second look would find
different; resumed from any of them, a pruning ends with the same units and the same bits.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from service.contract.errors import Invalid
from service.contract.prune_spec import Iterative, OneShot, PruneConfig, Target
from workers.graph.groups import Groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.unit_cost import Kept
from workers.journal import Journal, Stopped
from workers.pruning.schedule.account import Account, CostLayout
from workers.pruning.schedule.allocation import Cut, allocate
from workers.pruning.schedule.correspondence import by_the_teacher, origins
from workers.pruning.schedule.limits import Limits, check_keep
from workers.pruning.schedule.pruned import Pruned
from workers.pruning.schedule.steps import Step, group_steps
from workers.pruning.schedule.targets import Goal, Reach, amount, reachable
from workers.pruning.scores import Scores
from workers.training.determinism import deterministic

MAX_HALVINGS = 4  # of the step, on the way to a limit
MAX_BISECTIONS = 6  # of the cost, where everything goes at once
MAX_CORRECTIONS = 4  # of an estimated latency, where everything goes at once
BEST_OF = ("per_mac", "uniform")
PROGRESS = 1000  # parts into which the way is divided

Reason = Literal["target", "limit", "floor"]


@dataclass(frozen=True)
class Judgement:
    """How far a network is from its teacher on the validation split."""

    kl: float  # nats
    accuracy: float | None


class Score(Protocol):
    """What a criterion says of a network's units, by the network's own groups."""

    def __call__(
        self, network: LayerGraph, groups: Groups, *, step: int, expected_removed: Mapping[str, int]
    ) -> Scores:
        """`step` counts the scores of a run from 0; `expected_removed`: group -> units that are about to go."""


class Repair(Protocol):
    """The refit of a student in place; what it says of itself is a dataclass or a mapping of plain data."""

    def __call__(self, teacher: LayerGraph, student: LayerGraph, groups: Groups, kept: Kept) -> Any:
        """`groups` are the teacher's; `kept` says for each of its labels whether it stays."""


class Stopwatch(Protocol):
    """What times networks; see unit_latency.py."""

    def seconds(self, network: LayerGraph) -> tuple[float, float]:
        """Of one pass of the teacher and one of the network, measured in alternation."""

    def per_unit(self) -> Mapping[str, float]:
        """For each of the teacher's groups the seconds that one of its units takes."""


Judge = Callable[[LayerGraph], Judgement]
Save = Callable[[dict[str, Any]], Path]
Stage = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Outcome:
    """What came out, and the way there."""

    pruned: Pruned
    steps: tuple[Step, ...]
    reason: Reason  # why it stopped: the target is reached, a limit would be broken, nothing more may go
    reach: str  # how far it could go, and what holds the rest
    whole: Judgement  # the teacher's own


@dataclass
class Trial:
    """A step under way, with one allocation."""

    pruned: Pruned  # what is offered
    carried: Pruned | None  # what the next step goes on from, where that is another
    cut: Cut
    aim: float
    repaired: bool = False
    report: dict[str, Any] | None = None
    judged: Judgement | None = None
    cost: float | None = None  # by the goal's measure; of a latency, measured

    def plain(self) -> dict[str, Any]:
        """The same as plain data and tensors."""
        return {
            "pruned": self.pruned.state(),
            "carried": None if self.carried is None else self.carried.state(),
            "cut": dataclasses.asdict(self.cut),
            "aim": self.aim,
            "repaired": self.repaired,
            "report": self.report,
            "judged": None if self.judged is None else dataclasses.asdict(self.judged),
            "cost": self.cost,
        }


def prune(
    teacher: LayerGraph,
    groups: Groups,
    config: PruneConfig,
    *,
    score: Score,
    judge: Judge,
    refit: Repair | None,
    journal: Journal,
    stopwatch: Stopwatch | None = None,
    save: Save | None = None,
    resume_from: Mapping[str, Any] | None = None,
    stage: Stage = lambda _: nullcontext(),
    keep_intermediate: Callable[[Step, Pruned], None] = lambda *_: None,
    series: str = "",
) -> Outcome:
    """Remove units of `groups` from `teacher` as `config` asks.

    Parameters
    ----------
    groups: of the teacher, which itself stays as it is.
    refit: None where nothing is to be refitted; `config.refit` is not looked at.
    stopwatch: needed for a target of latency, and for per_millisecond.
    save: writes the given state, durably, and says where.
    resume_from: a state that was given to `save`.
    stage: entered for scoring, removing, refitting and evaluating, as often as they come.
    keep_intermediate: is offered the network of every step; once more after a resume in between.
    series: comes before the names of metrics.

    Raises
    ------
    Invalid: the target cannot be reached or is no less than the whole, or `config.keep` names what is not there.
    Stopped: the journal said so; the last state that was saved stands.
    """
    check_keep(groups, config.keep)
    with deterministic(next((weight.device for weight in teacher.parameters()), torch.device("cpu"))):
        course = Course(teacher, groups, config, score, judge, refit, journal, stopwatch, save, stage)
        course.keep_intermediate, course.series = keep_intermediate, series
        if resume_from is not None:
            course.restore(resume_from)
        return course.run()


class Course:
    """A pruning under way."""

    def __init__(
        self,
        teacher: LayerGraph,
        groups: Groups,
        config: PruneConfig,
        score: Score,
        judge: Judge,
        refit: Repair | None,
        journal: Journal,
        stopwatch: Stopwatch | None,
        save: Save | None,
        stage: Stage,
    ) -> None:
        self.teacher, self.groups, self.config = teacher, groups, config
        self.score, self.judge, self.refit = score, judge, refit
        self.journal, self.stopwatch, self.save, self.stage = journal, stopwatch, save, stage
        self.keep_intermediate: Callable[[Step, Pruned], None] = lambda *_: None
        self.series = ""
        self.layout = CostLayout(groups)
        self.reach: Reach  # known once the teacher is measured
        self.limits = Limits(config.min_units, config.keep, config.round_to)
        # The state: what was found out, and how far it has come.
        self.whole: Judgement | None = None
        self.seconds = 0.0  # of the teacher, as first measured
        self.per_unit: dict[str, float] = {}
        self.current = Pruned.whole(teacher, groups)  # what the next step goes on from
        self.best = self.current  # the last network that holds
        self.cost = math.nan  # of `current`, by the goal's measure
        self.scores: Scores | None = None  # of `current`, by the teacher's numbers
        self.num_scored = 0
        self.trials: dict[str, Trial] = {}
        self.steps: list[Step] = []
        self.refinements = 0  # halvings, or bisections
        self.holds, self.breaks = math.inf, 0.0  # costs between which one_shot bisects
        self.correction, self.corrections = 1.0, 0  # of an estimated latency
        self.reason: Reason | None = None
        self.unsaved = False  # whether the state is ahead of what was saved

    # The way -------------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Go on until there is nothing more to do."""
        try:
            self._begin()
            while self.reason is None:
                self._step()
            self._refit_at_last()
        except Stopped:
            self._save()
            raise
        assert self.whole is not None  # noqa: S101  the beginning judges the teacher
        return Outcome(self.best, tuple(self.steps), self.reason, self.reach.text, self.whole)

    def _begin(self) -> None:
        """Measure the teacher, and see whether the target can be reached."""
        if self.whole is None:
            with self.stage("evaluating"):
                self.whole = self.judge(self.teacher)
                self._measure_units()
            self._found(measured=bool(self.per_unit))
        self.reach = reachable(
            self.layout, self.config.target, self.limits, seconds=self.seconds, seconds_per_unit=self.per_unit
        )
        if not self.reach.reachable:
            raise Invalid(self.reach.text)
        if not self.goal.open and self.goal.value >= self.goal.whole:
            whole, asked = amount(self.goal.cost, self.goal.whole), amount(self.goal.cost, self.goal.value)
            raise Invalid(
                f"the network costs {whole} already, no more than the {asked} that are asked for; ask for less"
            )
        self.journal.event("log", {"text": self.reach.text})
        if math.isnan(self.cost):
            self.cost = self.goal.whole

    def _measure_units(self) -> None:
        if self.config.target.latency is None and self.config.allocation != "per_millisecond":
            return
        if self.stopwatch is None:
            raise Invalid("a latency cannot be a target, nor milliseconds a measure, where nothing can be timed")
        self.seconds = self.stopwatch.seconds(self.teacher)[0]
        self.per_unit = dict(self.stopwatch.per_unit())

    def _step(self) -> None:
        """Try to remove what comes next, and take it or leave it."""
        aim = self._aim()
        scores = self._scored(aim)
        for allocation in self._candidates(scores):
            self._try(allocation, aim, scores)
        allocation, trial = min(self.trials.items(), key=lambda one: (not self._keeps(one[1]), distance(one[1])))
        if not trial.cut.selection:
            self._end_at_floor()
        elif self._holds(trial):
            self._take(allocation, trial, scores)
        else:
            self._leave(trial)
        self._found()

    def _aim(self) -> float:
        """What the network is to cost after the next step."""
        schedule = self.config.schedule
        if isinstance(schedule, OneShot):
            lowest = max(self.goal.value, self.reach.floor.of(self.goal.cost))
            return (self.holds + self.breaks) / 2 if self.refinements else lowest * self.correction
        return max(self.goal.value, self.cost * (1 - schedule.step * 0.5**self.refinements))

    def _candidates(self, scores: Scores) -> tuple[str, ...]:
        if self.config.allocation != "best":
            return (self.config.allocation,)
        return BEST_OF if scores.comparable else ("uniform",)

    def _scored(self, aim: float) -> Scores:
        """What the criterion says of the network as it is, by the teacher's numbers."""
        if self.scores is None and not self.current.groups:
            return Scores({})  # every unit that could go has gone
        if self.scores is None:
            with self.stage("scoring"):
                expected = self._expected(aim)
                own = self.score(
                    self.current.network, self.current.groups, step=self.num_scored, expected_removed=expected
                )
            self.scores = by_the_teacher(own, self.current)
            self.num_scored += 1
            self._found()
        return self.scores

    def _expected(self, aim: float) -> dict[str, int]:
        """Own group -> how many of its units would go, did all groups lose the same share; for screened scores."""
        same = {name: torch.zeros(group.num_units) for name, group in self.groups.items()}
        cut = self._cut(Scores(same), "uniform", aim)
        found = {}
        for name, units in origins(self.current).items():
            gone = sum(origin is not None and origin[1] in cut.selection.get(origin[0], ()) for origin in units)
            found[name] = gone
        return found

    # One trial -----------------------------------------------------------------------------------------------------

    def _try(self, allocation: str, aim: float, scores: Scores) -> None:
        """Remove, repair and judge, as far as that is not done."""
        if allocation not in self.trials:
            with self.stage("removing"):
                cut = self._cut(scores, allocation, aim)
                trial = Trial(self.current.without(cut.selection), None, cut, aim)
            self.trials[allocation] = trial
            self._found()
        trial = self.trials[allocation]
        if trial.cut.selection and self.refit is not None and not trial.repaired and self._repairs(trial):
            self._repair(trial)
            self._found()
        if trial.cut.selection and trial.judged is None:
            with self.stage("evaluating"):
                trial.judged = self.judge(trial.pruned.network)
                trial.cost = self._cost_of(trial.pruned)
            self._found(measured=self.goal.cost == "latency")

    def _cut(self, scores: Scores, allocation: str, aim: float) -> Cut:
        account = self._account(self.current, self.cost)
        schedule = self.config.schedule
        share = 1.0 if isinstance(schedule, OneShot) else schedule.max_group_share
        return allocate(account, scores, allocation, self.goal.cost, aim, self.limits, share)

    def _repairs(self, trial: Trial) -> bool:
        """Whether this trial is refitted: always, but for an iterative schedule that will go on."""
        if not isinstance(self.config.schedule, Iterative) or self._limited:
            return True
        account = self._account(trial.pruned, self.cost)
        room = any(
            self.limits.below(group, account.num_left(name)) < account.num_left(name)
            for name, group in self.groups.items()
        )
        return not room or account.cost(self.goal.cost) <= self.goal.value

    def _repair(self, trial: Trial) -> None:
        """Refit what is offered; an iterative schedule goes on from the network as it was cut."""
        if isinstance(self.config.schedule, Iterative):
            trial.carried = trial.pruned
        trial.pruned, trial.report = self._refitted(trial.pruned)
        trial.repaired = True

    def _refitted(self, pruned: Pruned) -> tuple[Pruned, dict[str, Any]]:
        """A refitted copy, its tensors laid out as if it had just been rebuilt, and what the refit says of itself."""
        assert self.refit is not None  # noqa: S101  asked by the callers
        copied = pruned.copy()
        with self.stage("refitting"):
            report = self.refit(self.teacher, copied.network, self.groups, copied.kept)
        return copied.copy(), plain_report(report)

    def _cost_of(self, pruned: Pruned) -> float:
        """By the goal's measure; a latency as the teacher's first seconds times the ratio of both, measured now."""
        if self.goal.cost != "latency":
            return self._account(pruned, 0.0).cost(self.goal.cost)
        assert self.stopwatch is not None  # noqa: S101  the beginning asked
        teacher, own = self.stopwatch.seconds(pruned.network)
        return self.seconds * own / teacher

    def _account(self, pruned: Pruned, seconds: float) -> Account:
        return Account(self.layout, pruned.gone, seconds=seconds, seconds_per_unit=self.per_unit)

    # What comes of it ----------------------------------------------------------------------------------------------

    @property
    def goal(self) -> Goal:
        """What the whole network is to cost."""
        return self.reach.goal

    @property
    def _limited(self) -> bool:
        return self.config.target.max_kl is not None or self.config.target.max_accuracy_drop is not None

    def _keeps(self, trial: Trial) -> bool:
        return trial.judged is None or self._holds(trial)

    def _holds(self, trial: Trial) -> bool:
        assert trial.judged is not None  # noqa: S101  what removes something is judged
        assert self.whole is not None  # noqa: S101
        return within(trial.judged, self.whole, self.config.target)

    def _take(self, allocation: str, trial: Trial, scores: Scores) -> None:
        """The trial is the network now."""
        assert trial.judged is not None  # noqa: S101  as in _holds
        assert trial.cost is not None  # noqa: S101
        step = Step(
            index=len(self.steps) + 1,
            target=trial.aim,
            costs=self._account(trial.pruned, trial.cost if self.goal.cost == "latency" else 0.0).costs,
            kl=trial.judged.kl,
            accuracy=trial.judged.accuracy,
            candidate=allocation,
            groups=group_steps(self.current, trial.pruned, scores, trial.cut),
            refit=trial.report,
            examples=scores.examples,
            notes=(*scores.notes, *trial.cut.notes),
        )
        self.steps.append(step)
        self.best = trial.pruned
        self.trials = {}
        self._tell(step, trial.cost)
        self.keep_intermediate(step, trial.pruned)
        if isinstance(self.config.schedule, OneShot):
            self.holds = trial.cost
            self._end_of_one_shot(trial.cost)
        else:
            self.current, self.cost, self.scores = trial.carried or trial.pruned, trial.cost, None
            if self.cost <= self.goal.value:
                self.reason = "target"

    def _end_of_one_shot(self, cost: float) -> None:
        if cost <= self.goal.value:
            self.reason = "target"
        elif not self.refinements and self.goal.cost == "latency" and self.corrections < MAX_CORRECTIONS:
            self.corrections += 1  # units take other times than was estimated
            self.correction *= self.goal.value / cost
        elif not self.refinements:
            self.reason = "floor"
        else:
            self._refine(MAX_BISECTIONS)

    def _leave(self, trial: Trial) -> None:
        """The trial breaks a limit: come nearer, or stay with what holds."""
        single = sum(len(units) for units in trial.cut.selection.values()) == 1
        self.trials = {}
        if isinstance(self.config.schedule, OneShot):
            self.breaks = trial.aim
            self.holds = min(self.holds, self.goal.whole)
            self._refine(MAX_BISECTIONS)
        elif single:
            self.reason = "limit"
        else:
            self._refine(MAX_HALVINGS)

    def _refine(self, most: int) -> None:
        self.refinements += 1
        if self.refinements > most:
            self.reason = "limit"

    def _end_at_floor(self) -> None:
        """Nothing more may go."""
        self.trials = {}
        self.reason = "limit" if self.refinements else "floor"

    def _refit_at_last(self) -> None:
        """Where a network is refitted once, and was not, it is now."""
        if self.refit is not None and self.steps and self.steps[-1].refit is None:
            self.best, report = self._refitted(self.best)
            with self.stage("evaluating"):
                judged = self.judge(self.best.network)
            self.steps[-1] = dataclasses.replace(self.steps[-1], kl=judged.kl, accuracy=judged.accuracy, refit=report)
            self.keep_intermediate(self.steps[-1], self.best)

    def _tell(self, step: Step, cost: float) -> None:
        goal = self.goal
        done = goal.progress(cost, self.reach.floor.of(goal.cost))
        self.journal.progress(round(done * PROGRESS), PROGRESS)
        values = {"macs": step.costs.macs, "params": step.costs.params, "kl": step.kl, "undecided": step.undecided}
        accuracy = {} if step.accuracy is None else {"accuracy": step.accuracy}
        self.journal.metrics(
            step.index, {f"{self.series}pruning/{name}": value for name, value in {**values, **accuracy}.items()}
        )

    # The state -----------------------------------------------------------------------------------------------------

    def _found(self, *, measured: bool = False) -> None:
        """Something was found out: save it when that is due, or cannot be found out again; stop if that was asked."""
        self.unsaved = True
        if measured or self.journal.checkpoint_is_due():
            self._save()
        self.journal.check()

    def _save(self) -> None:
        if self.save is not None and self.unsaved:
            self.journal.checkpoint(self.save(self.state()), len(self.steps))
            self.unsaved = False

    def state(self) -> dict[str, Any]:
        """Everything that the rest depends on: plain data, and tensors, which are to be written before it goes on."""
        return {
            "whole": None if self.whole is None else dataclasses.asdict(self.whole),
            "seconds": self.seconds,
            "per_unit": self.per_unit,
            "current": self.current.state(),
            "best": None if self.best is self.current else self.best.state(),
            "cost": self.cost,
            "scores": None if self.scores is None else plain_scores(self.scores),
            "num_scored": self.num_scored,
            "trials": {name: trial.plain() for name, trial in self.trials.items()},
            "steps": [step.plain() for step in self.steps],
            "refinements": self.refinements,
            "holds": self.holds,
            "breaks": self.breaks,
            "correction": self.correction,
            "corrections": self.corrections,
            "reason": self.reason,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become the pruning that `state` was taken from."""
        self.whole = None if state["whole"] is None else Judgement(**state["whole"])
        self.seconds, self.per_unit = state["seconds"], dict(state["per_unit"])
        self.current = self._rebuilt(state["current"])
        self.best = self.current if state["best"] is None else self._rebuilt(state["best"])
        self.cost = state["cost"]
        self.scores = None if state["scores"] is None else Scores(**state["scores"])
        self.num_scored = state["num_scored"]
        self.trials = {name: self._trial(plain) for name, plain in state["trials"].items()}
        self.steps = [Step.from_plain(plain) for plain in state["steps"]]
        self.refinements = state["refinements"]
        self.holds, self.breaks, self.reason = state["holds"], state["breaks"], state["reason"]
        self.correction, self.corrections = state["correction"], state["corrections"]

    def _rebuilt(self, state: Mapping[str, Any]) -> Pruned:
        return Pruned.from_state(self.teacher, self.groups, state)

    def _trial(self, plain: Mapping[str, Any]) -> Trial:
        carried, judged = plain["carried"], plain["judged"]
        changed = {
            "pruned": self._rebuilt(plain["pruned"]),
            "carried": None if carried is None else self._rebuilt(carried),
            "cut": Cut(**plain["cut"]),
            "judged": None if judged is None else Judgement(**judged),
        }
        return Trial(**{**plain, **changed})


def distance(trial: Trial) -> float:
    """From the teacher, in nats; a trial that removed nothing is chosen only where all did."""
    return math.inf if trial.judged is None else trial.judged.kl


def within(judged: Judgement, whole: Judgement, target: Target) -> bool:
    """Whether a network keeps the limits of the target."""
    if target.max_kl is not None and not judged.kl <= target.max_kl:
        return False
    if target.max_accuracy_drop is None:
        return True
    if judged.accuracy is None or whole.accuracy is None:
        raise Invalid("max_accuracy_drop needs a labelled validation split; use max_kl for unlabelled data")
    return whole.accuracy - judged.accuracy <= target.max_accuracy_drop + 1e-12


def plain_scores(scores: Scores) -> dict[str, Any]:
    """Scores as plain data and tensors."""
    return {
        "values": dict(scores.values),
        "errors": dict(scores.errors),
        "examples": scores.examples,
        "comparable": scores.comparable,
        "notes": tuple(scores.notes),
    }


def plain_report(report: Any) -> dict[str, Any]:
    """What a refit says of itself as plain data."""
    if dataclasses.is_dataclass(report) and not isinstance(report, type):
        return dataclasses.asdict(report)
    return {} if report is None else dict(report)
