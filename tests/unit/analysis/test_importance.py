import pytest
import torch

from service.contract.criteria import L2, ActivationEntropy, OutputKl
from tests.unit.pruning.subjects import Subject, subject
from workers.analysis.importance import importance, prospect
from workers.analysis.listing import Room
from workers.graph.surgery import remove
from workers.graph.unit_cost import Size
from workers.pruning.schedule.account import CostLayout
from workers.pruning.scores import Scores


def drawn(case: Subject, *, comparable: bool = True, low: float = 0.0, errors: float | None = None) -> Scores:
    generator = torch.Generator().manual_seed(0)
    values = {
        name: low + torch.rand(group.num_units, generator=generator, dtype=torch.float64)
        for name, group in case.groups.items()
    }
    known = {} if errors is None else {name: torch.full_like(each, errors) for name, each in values.items()}
    return Scores(values, known, examples=7, comparable=comparable)


@pytest.mark.parametrize("comparable", [True, False])
def test_the_preview_costs_what_the_network_without_these_units_costs(comparable: bool) -> None:
    case = subject("lenet")
    found = prospect(case.groups, CostLayout(case.groups), drawn(case, comparable=comparable))
    left = case.groups.size_without(found.cut.selection)
    assert Size(found.preview.parameters, found.preview.macs) == left
    network = remove(case.network, {name: list(units) for name, units in found.cut.selection.items()}, case.groups)
    assert sum(weight.numel() for weight in network.parameters()) == found.preview.parameters
    assert found.preview.macs <= 0.5 * case.groups.size.macs < found.preview.macs * 1.2
    assert found.preview.reached
    assert found.preview.allocation == ("per_mac" if comparable else "uniform")


def test_the_share_of_the_score_is_that_of_the_units_that_would_go() -> None:
    case = subject("lenet")
    scores = drawn(case)
    found = prospect(case.groups, CostLayout(case.groups), scores)
    gone = sum(float(scores.values[name][list(units)].sum()) for name, units in found.cut.selection.items())
    total = sum(float(values.sum()) for values in scores.values.values())
    assert found.preview.share_of_score == pytest.approx(gone / total, rel=1e-5)
    assert prospect(case.groups, CostLayout(case.groups), drawn(case, low=-0.5)).preview.share_of_score is None


def test_a_target_below_the_floor_is_not_reached_and_says_so() -> None:
    case = subject("lenet")
    scores = drawn(case)
    found = prospect(case.groups, CostLayout(case.groups), scores, target=1e-6)
    assert not found.preview.reached
    told = importance(OutputKl(), case.groups, scores, found, Room())
    assert "no less can be reached" in told.reading


def test_every_group_says_what_would_become_of_it() -> None:
    case = subject("lenet")
    scores = drawn(case, errors=0.01)
    found = prospect(case.groups, CostLayout(case.groups), scores)
    told = importance(L2(name="l2"), case.groups, scores, found, Room())
    assert (told.criterion, told.examples, list(told.groups)) == ({"name": "l2"}, 7, list(case.groups))
    assert sum(group.removed for group in told.groups.values()) == found.preview.removed
    for name, group in told.groups.items():
        assert group.scores is not None
        assert group.scores.values == pytest.approx(tuple(scores.values[name].tolist()), rel=1e-5)
        assert group.median_error == 0.01
        near = (scores.values[name] - group.cut).abs() < 0.02
        assert group.undecided == int(near.sum())
    assert f"would remove {found.preview.removed} of" in told.reading


def test_scores_of_one_layer_are_said_to_be_of_one_layer() -> None:
    case = subject("lenet")
    scores = drawn(case, comparable=False)
    criterion = ActivationEntropy(name="activation_entropy")
    found = prospect(case.groups, CostLayout(case.groups), scores)
    told = importance(criterion, case.groups, scores, found, Room(left=0))
    assert "every group loses the same share" in told.reading
    assert told.preview.share_of_score is None
    assert all(group.scores is not None and group.scores.values is None for group in told.groups.values())
