"""The course of a pruning: its steps, its limits, and that it ends with the same bits wherever it was interrupted."""

import copy
import functools
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.contract.errors import Invalid
from service.contract.prune_spec import PruneConfig
from tests.unit.pruning.zoo import l2_scores, network_of
from tests.unit.training.blobs import fingerprint
from workers.graph.cost import graph_cost
from workers.graph.groups import Groups, find_groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.unit_cost import Kept
from workers.information.divergence import kl_divergence_from_logits
from workers.journal import Silent, Stopped
from workers.pruning.schedule.account import Account, CostLayout
from workers.pruning.schedule.limits import Limits
from workers.pruning.schedule.pruned import Pruned
from workers.pruning.schedule.schedule import Judgement, Outcome, prune
from workers.pruning.schedule.steps import Step
from workers.pruning.schedule.targets import at_floor
from workers.pruning.scores import Scores

INPUTS = torch.randn(32, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@functools.cache
def teacher_network() -> LayerGraph:
    """A network whose outputs depend on its inputs, as those of a trained one."""
    network = copy.deepcopy(network_of("lenet"))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0)
    return network


@functools.cache
def teacher_groups() -> Groups:
    return find_groups(teacher_network())


def logits(network: LayerGraph) -> Tensor:
    network.eval()
    with torch.inference_mode():
        found: Tensor = network(INPUTS)
        return found.clone()


@dataclass
class Tools:
    """Stand-ins for a criterion, a refit, a judge and a stopwatch, which count how often they are asked."""

    comparable: bool = True
    asked: Counter[str] = field(default_factory=Counter)
    kept_on: list[tuple[int, int]] = field(default_factory=list)
    expected: list[Mapping[str, int]] = field(default_factory=list)

    def score(self, network: LayerGraph, groups: Groups, *, step: int, expected_removed: Mapping[str, int]) -> Scores:
        assert step == self.asked["score"]
        assert set(expected_removed) == set(groups)
        self.asked["score"] += 1
        self.expected.append(expected_removed)
        own = l2_scores(network, groups)
        return Scores(own.values, own.errors, own.examples, self.comparable, ("by size",))

    def refit(self, teacher: LayerGraph, student: LayerGraph, groups: Groups, kept: Kept) -> dict[str, Any]:
        assert teacher is teacher_network()
        assert kept.shape == (groups.reading.ledger.num_labels,)
        self.asked["refit"] += 1
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if parameter.dim() == 2:  # other values, and other strides, as a solver would leave them
                    moved = parameter + 1e-3 * parameter.sin()
                    student.get_parameter(name).data = moved.t().contiguous().t()
        return {"labels": int(kept.sum())}

    def judge(self, network: LayerGraph) -> Judgement:
        self.asked["judge"] += 1
        target, own = logits(teacher_network()), logits(network)
        kl = float(kl_divergence_from_logits(target, own).mean())
        return Judgement(kl, float((target.argmax(1) == own.argmax(1)).double().mean()))

    def seconds(self, network: LayerGraph) -> tuple[float, float]:
        """A machine that is never the same twice: what was measured must be remembered, not measured again."""
        self.asked["seconds"] += 1
        speed = 1 + 0.5 * (self.asked["seconds"] % 3)
        return speed, speed * (0.1 + 0.9 * graph_cost(network).macs / graph_cost(teacher_network()).macs)

    def per_unit(self) -> dict[str, float]:
        self.asked["per_unit"] += 1
        groups = teacher_groups()
        return {name: 0.7 * group.macs_per_unit / groups.size.macs for name, group in groups.items()}


class Interrupting(Silent):
    """Stops at the n-th look."""

    def __init__(self, at: int = 10**9, *, due: bool = False) -> None:
        self.at, self.looks, self.due = at, 0, due
        self.done: list[tuple[int, int]] = []
        self.series: list[tuple[int, Mapping[str, float]]] = []

    def check(self) -> None:
        self.looks += 1
        if self.looks == self.at:
            raise Stopped

    def checkpoint_is_due(self) -> bool:
        return self.due

    def progress(self, step: int, total: int) -> None:
        self.done.append((step, total))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.series.append((step, values))


@dataclass
class Shelf:
    """Keeps the last state as bytes, as a file would."""

    content: bytes | None = None

    def save(self, state: dict[str, Any]) -> Path:
        written = io.BytesIO()
        torch.save(state, written)
        self.content = written.getvalue()
        return Path("state")

    def load(self) -> dict[str, Any] | None:
        if self.content is None:
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(self.content), weights_only=True)
        return state


def run(
    config: dict[str, Any], tools: Tools | None = None, journal: Interrupting | None = None, shelf: Shelf | None = None
) -> Outcome:
    tools, shelf = tools or Tools(), shelf or Shelf()
    refit = None if config.get("refit", True) is None else tools.refit
    return prune(
        teacher_network(),
        teacher_groups(),
        PruneConfig.model_validate(config),
        score=tools.score,
        judge=tools.judge,
        refit=refit,
        journal=journal or Interrupting(),
        stopwatch=tools,
        save=shelf.save,
        resume_from=shelf.load(),
        keep_intermediate=lambda step, pruned: tools.kept_on.append((step.index, pruned.size.macs)),
    )


def macs_share(pruned: Pruned) -> float:
    return pruned.size.macs / pruned.origin.size.macs


COURSES: dict[str, dict[str, Any]] = {
    "interleaved": {"target": {"macs": 0.3}, "schedule": {"step": 0.3}},
    "best": {"target": {"macs": 0.4}, "allocation": "best", "schedule": {"step": 0.3}},
    "iterative": {"target": {"params": 0.3}, "schedule": {"name": "iterative", "step": 0.3}},
    "iterative with a limit": {"target": {"max_kl": 0.43}, "schedule": {"name": "iterative", "step": 0.3}},
    "interleaved with a limit": {"target": {"max_kl": 0.43, "macs": 0.15}, "schedule": {"step": 0.3}},
    "one_shot": {"target": {"bytes": 0.5}, "schedule": {"name": "one_shot"}},
    "one_shot with a limit": {"target": {"max_accuracy_drop": 0.7}, "schedule": {"name": "one_shot"}},
    "latency": {"target": {"latency": 0.5}, "allocation": "per_millisecond", "schedule": {"step": 0.3}},
}


@pytest.mark.parametrize(("course", "at"), [*((course, 1) for course in COURSES), ("best", 3)])
def test_wherever_it_is_interrupted_it_ends_with_the_same_bits_and_does_nothing_twice(course: str, at: int) -> None:
    tools, journal = Tools(), Interrupting()
    expected = run(COURSES[course], tools, journal)
    assert journal.looks > 4
    assert expected.steps or "limit" in course
    again, shelf, outcome = Tools(), Shelf(), None
    for _ in range(journal.looks + 1):
        try:
            outcome = run(COURSES[course], again, Interrupting(at), shelf)
            break
        except Stopped:
            continue
    assert outcome is not None
    assert outcome.pruned.gone == expected.pruned.gone
    assert fingerprint(outcome.pruned.state()["tensors"]) == fingerprint(expected.pruned.state()["tensors"])
    assert (outcome.steps, outcome.reason, outcome.whole) == (expected.steps, expected.reason, expected.whole)
    assert again.asked == tools.asked


def test_interleaved_removes_refits_and_judges_again_until_the_target() -> None:
    tools, journal = Tools(), Interrupting()
    outcome = run(COURSES["interleaved"], tools, journal)
    assert outcome.reason == "target"
    assert 0.2 < macs_share(outcome.pruned) <= 0.3
    count = len(outcome.steps)
    assert count >= 4  # 0.7⁴ < 0.3 < 0.7³
    assert tools.asked == {"score": count, "refit": count, "judge": count + 1}
    shares = [step.costs.macs for step in outcome.steps]
    assert shares == sorted(shares, reverse=True)
    assert outcome.steps[-1].costs.macs == outcome.pruned.size.macs == graph_cost(outcome.pruned.network).macs
    assert [index for index, _ in tools.kept_on] == [step.index for step in outcome.steps] == list(range(1, count + 1))
    assert [macs for _, macs in tools.kept_on] == shares
    assert [step for step, _ in journal.series] == list(range(1, count + 1))
    assert journal.done == sorted(journal.done)
    assert journal.done[-1] == (1000, 1000)
    before = {name: group.num_units for name, group in teacher_groups().items()}
    for step in outcome.steps:
        assert {name: group.before for name, group in step.groups.items()} == before
        before = {name: group.after for name, group in step.groups.items()}
        for name, lost in step.removed.items():
            assert lost <= max(1, int(0.3 * step.groups[name].before))
        assert step.refit is not None
        assert step.notes == ("by size",)
        assert step.examples == 64
    assert before == {name: outcome.pruned.num_left(name) for name in before}


def test_what_is_expected_to_go_is_about_what_goes() -> None:
    tools = Tools()
    outcome = run(COURSES["interleaved"], tools)
    for step, expected in zip(outcome.steps, tools.expected, strict=True):
        assert sum(expected.values()) == pytest.approx(sum(step.removed.values()), rel=0.75)


def test_iterative_refits_once_at_the_end() -> None:
    tools = Tools()
    outcome = run(COURSES["iterative"], tools)
    assert tools.asked["refit"] == 1
    assert [step.refit is not None for step in outcome.steps] == [False] * (len(outcome.steps) - 1) + [True]
    assert tools.asked["score"] == len(outcome.steps) > 2
    assert outcome.steps[-1].kl == pytest.approx(Tools().judge(outcome.pruned.network).kl)


def test_one_shot_judges_once_and_removes_everything_at_once() -> None:
    tools = Tools()
    outcome = run(COURSES["one_shot"], tools)
    assert tools.asked == {"score": 1, "refit": 1, "judge": 2}
    assert len(outcome.steps) == 1
    cost, whole = graph_cost(outcome.pruned.network).bytes, graph_cost(teacher_network()).bytes
    assert 0.45 * whole < cost <= 0.5 * whole


def test_without_a_refit_weights_are_the_teachers() -> None:
    outcome = run({**COURSES["interleaved"], "refit": None})
    direct = Pruned.whole(teacher_network(), teacher_groups()).without(outcome.pruned.gone)
    assert fingerprint(outcome.pruned.state()["tensors"]) == fingerprint(direct.state()["tensors"])
    assert all(step.refit is None for step in outcome.steps)


def test_best_takes_the_candidate_that_is_nearest_to_the_teacher() -> None:
    shelf, tools = Shelf(), Tools()
    seen: list[dict[str, float]] = []
    plain = shelf.save

    def save(state: dict[str, Any]) -> Path:
        judged = {name: trial["judged"]["kl"] for name, trial in state["trials"].items() if trial["judged"]}
        if len(judged) == 2:
            seen.append(judged)
        return plain(state)

    shelf.save = save  # type: ignore[method-assign]
    outcome = run(COURSES["best"], tools, Interrupting(due=True), shelf)
    assert [step.candidate for step in outcome.steps] == [min(one, key=one.__getitem__) for one in seen]
    assert [step.kl for step in outcome.steps] == [min(one.values()) for one in seen]
    assert tools.asked["score"] == len(outcome.steps)
    assert tools.asked["refit"] == 2 * len(outcome.steps)


def test_scores_that_cannot_be_compared_leave_best_one_candidate() -> None:
    tools = Tools(comparable=False)
    outcome = run(COURSES["best"], tools)
    assert {step.candidate for step in outcome.steps} == {"uniform"}
    assert tools.asked["refit"] == len(outcome.steps)


@pytest.mark.parametrize("course", ["interleaved with a limit", "iterative with a limit"])
def test_a_limit_stops_at_the_last_network_that_keeps_it(course: str) -> None:
    tools = Tools()
    outcome = run(COURSES[course], tools)
    assert outcome.reason == "limit"
    assert outcome.steps
    assert all(step.kl <= 0.43 for step in outcome.steps)
    assert outcome.steps[-1].kl == tools.judge(outcome.pruned.network).kl
    # Near the limit steps are finer: the last is smaller than the first, and coarser steps alone go less far.
    ratios = [
        now.costs.macs / before
        for before, now in zip(
            [outcome.pruned.origin.size.macs, *(step.costs.macs for step in outcome.steps)], outcome.steps, strict=False
        )
    ]
    assert ratios[-1] > ratios[0]
    # What was refitted to be judged is what comes out.
    assert all(step.refit is not None for step in outcome.steps)


def test_one_shot_bisects_between_what_holds_and_what_does_not() -> None:
    tools = Tools()
    outcome = run(COURSES["one_shot with a limit"], tools)
    assert tools.asked["score"] == 1
    assert outcome.reason == "limit"
    assert outcome.steps
    assert all(step.accuracy is not None and step.accuracy >= 0.3 for step in outcome.steps)
    assert outcome.steps[-1].costs.macs == outcome.pruned.size.macs
    assert tools.asked["judge"] == 2 + 6


def test_limits_that_nothing_breaks_go_to_the_floor() -> None:
    outcome = run({"target": {"max_kl": 1000.0}, "schedule": {"step": 0.5, "max_group_share": 0.5}, "min_units": 3})
    assert outcome.reason == "floor"
    assert all(outcome.pruned.num_left(name) == min(3, one.num_units) for name, one in outcome.pruned.origin.items())
    floor = at_floor(CostLayout(outcome.pruned.origin), Limits(3, {}, 1)).costs.macs
    assert outcome.pruned.size.macs == floor
    shot = run({"target": {"max_kl": 1000.0}, "schedule": {"name": "one_shot"}, "min_units": 3})
    assert (shot.reason, shot.pruned.size.macs) == ("floor", floor)


def test_a_limit_that_nothing_keeps_leaves_the_teacher_whole() -> None:
    outcome = run({"target": {"max_kl": 1e-12}})
    assert (outcome.reason, outcome.steps, outcome.pruned.gone) == ("limit", (), {})
    shot = run({"target": {"max_kl": 1e-12}, "schedule": {"name": "one_shot"}})
    assert (shot.reason, shot.steps, shot.pruned.gone) == ("limit", (), {})


def test_a_target_out_of_reach_is_refused_before_anything_is_judged() -> None:
    tools = Tools()
    with pytest.raises(Invalid, match="cannot be reached"):
        run({"target": {"macs": 0.001}}, tools)
    assert tools.asked["score"] == 0


def test_a_target_that_is_met_already_is_refused() -> None:
    with pytest.raises(Invalid, match="costs 59,336 MACs already"):
        run({"target": {"macs": {"absolute": 10**12}}})
    with pytest.raises(Invalid, match="milliseconds at batch 1"):
        run({"target": {"latency": {"absolute": 1000}}})  # meant as milliseconds


def test_an_iterative_schedule_refits_once_whatever_its_goal_is_measured_in() -> None:
    for target in ({"macs": 0.6}, {"latency": 0.6}):
        tools = Tools()
        outcome = run({"target": target, "schedule": {"name": "iterative", "step": 0.3}}, tools)
        assert outcome.reason == "target"
        assert tools.asked["refit"] == 1
        assert outcome.steps[-1].refit is not None


def test_when_every_unit_that_could_go_has_gone_the_criterion_is_not_asked() -> None:
    config = {"target": {"max_kl": 1000.0}, "min_units": 1, "schedule": {"step": 0.6, "max_group_share": 1.0}}
    outcome = run({**config, "criterion": {"mode": "screened"}})
    assert outcome.reason == "floor"


def test_best_takes_the_candidate_that_keeps_the_limits() -> None:
    tools = Tools()
    judged = iter([(0.1, 0.9), (0.2, 1.0)])

    def judge(network: LayerGraph) -> Judgement:
        return Judgement(0.0, 1.0) if network is teacher_network() else Judgement(*next(judged))

    tools.judge = judge  # type: ignore[method-assign]
    limits = {"macs": 0.9, "max_accuracy_drop": 0.01}
    outcome = run({"target": limits, "schedule": {"step": 0.2}, "allocation": "best"}, tools)
    assert [step.candidate for step in outcome.steps] == ["uniform"]


def test_a_latency_is_measured_after_every_step_beside_the_teacher() -> None:
    tools = Tools()
    outcome = run(COURSES["latency"], tools)
    assert outcome.reason == "target"
    assert tools.asked["per_unit"] == 1
    assert tools.asked["seconds"] == 1 + len(outcome.steps)
    whole = 1.5  # what the teacher took when it was first measured
    for step in outcome.steps:
        share = 0.1 + 0.9 * step.costs.macs / teacher_groups().size.macs
        assert step.costs.latency == pytest.approx(whole * share)
    assert outcome.steps[-1].costs.latency <= 0.5 * whole


def test_accuracy_limits_need_labels() -> None:
    tools = Tools()
    judge = tools.judge
    tools.judge = lambda network: Judgement(judge(network).kl, None)  # type: ignore[method-assign]
    with pytest.raises(Invalid, match="labelled"):
        run(COURSES["one_shot with a limit"], tools)


def test_steps_survive_being_written_as_plain_data() -> None:
    outcome = run(COURSES["interleaved"])
    for step in outcome.steps:
        assert Step.from_plain(step.plain()) == step


def test_a_step_says_how_scores_lay_about_the_cut() -> None:
    outcome = run(COURSES["interleaved"])
    step = outcome.steps[0]
    scores = l2_scores(teacher_network(), teacher_groups()).values
    for name, group in step.groups.items():
        values = scores[name]
        assert sum(group.histogram) == group.before == len(values)
        assert len(group.histogram) == 20
        assert group.quantiles == pytest.approx([float(values.quantile(q)) for q in (0, 0.25, 0.5, 0.75, 1)])
        assert group.cut is not None
        assert group.undecided == int(((values - group.cut).abs() < 0.02).sum())
        if group.after < group.before:
            assert int((values < group.cut).sum()) == group.before - group.after
    assert Account(CostLayout(teacher_groups()), outcome.pruned.gone).costs.macs == outcome.pruned.size.macs
