"""What is asked for, how far a network can go, and what it is told when that is not far enough."""

import pytest

from service.contract.prune_spec import Target
from tests.unit.pruning.zoo import groups_of, layout_of, network_of
from workers.graph.cost import graph_cost
from workers.graph.surgery import remove
from workers.pruning.schedule.account import Account
from workers.pruning.schedule.limits import Limits
from workers.pruning.schedule.targets import at_floor, goal_of, reachable


def test_a_share_and_a_number_are_the_same_goal() -> None:
    whole = Account(layout_of("resnet8"), seconds=0.4).costs
    share = goal_of(Target(macs=0.25), whole)
    number = goal_of(Target.model_validate({"macs": {"absolute": whole.macs / 4}}), whole)
    assert share == number
    assert (share.cost, share.value, share.whole) == ("macs", whole.macs / 4, whole.macs)
    assert goal_of(Target(params=0.5), whole).value == whole.params / 2
    assert goal_of(Target(bytes=0.5), whole).value == whole.bytes / 2
    assert goal_of(Target(latency=0.5), whole).value == pytest.approx(0.2)
    assert goal_of(Target(max_kl=0.1), whole).open


@pytest.mark.parametrize("name", ["resnet8", "fused_qkv", "densenet"])
@pytest.mark.parametrize("limits", [Limits(), Limits(min_units=3, round_to=4)])
def test_the_floor_is_what_surgery_leaves_with_every_group_at_its_floor(name: str, limits: Limits) -> None:
    groups = groups_of(name)
    floor = at_floor(layout_of(name), limits)
    # Which units stay does not matter: here the first, there the last.
    selection = {
        group.name: range(limits.lowest(group), group.num_units)
        for group in groups.values()
        if limits.lowest(group) < group.num_units
    }
    cost = graph_cost(remove(network_of(name), selection, groups))
    assert (floor.costs.macs, floor.costs.params, floor.costs.bytes) == (cost.macs, cost.parameters, cost.bytes)


def test_what_is_at_the_floor_is_just_reachable_and_what_is_below_is_not() -> None:
    layout = layout_of("vgg")
    floor = at_floor(layout, Limits()).costs
    for name, value in (("macs", floor.macs), ("params", floor.params), ("bytes", floor.bytes)):
        assert reachable(layout, Target.model_validate({name: {"absolute": value}}), Limits()).reachable
        assert not reachable(layout, Target.model_validate({name: {"absolute": value - 1}}), Limits()).reachable
    assert reachable(layout, Target(max_kl=0.1), Limits()).reachable
    assert reachable(layout, Target(macs=0.3), Limits()).reachable
    assert not reachable(layout, Target(macs=0.3), Limits(min_units=1000)).reachable


def test_a_refusal_says_how_far_it_goes_what_holds_the_rest_and_what_to_ask_for() -> None:
    reach = reachable(layout_of("shufflenet"), Target(macs=0.01), Limits())
    floor, whole = reach.floor.macs, groups_of("shufflenet").size.macs
    assert not reach.reachable
    assert f"{floor:,} MACs" in reach.text
    assert reach.holders[0].name in reach.text
    amounts = [holder.amount for holder in reach.holders]
    assert amounts == sorted(amounts, reverse=True)
    assert sum(amounts) <= floor
    asked = float(reach.text.split("at least ")[1].split(" of the whole")[0])
    assert floor / whole <= asked < floor / whole + 0.001
    assert reachable(layout_of("shufflenet"), Target(macs=asked), Limits()).reachable


def test_operators_that_pin_are_named_with_their_reasons() -> None:
    groups = groups_of("lstm")
    reach = reachable(layout_of("lstm"), Target(params=0.5), Limits())
    assert not reach.reachable
    reasons = {reason for holder in reach.holders for reason in holder.reasons}
    assert any(pin.operator in reason for pin in groups.pinned for reason in reasons)
    assert any(reason in reach.text for reason in reasons)


def test_a_latency_is_judged_by_what_units_were_measured_to_take() -> None:
    layout = layout_of("mlp")
    per_unit = {name: 0.5 / group.num_units / 2 for name, group in layout.groups.items()}
    measured = {"seconds": 1.0, "seconds_per_unit": per_unit}
    reach = reachable(layout, Target(latency=0.6), Limits(min_units=1), **measured)  # type: ignore[arg-type]
    assert reach.reachable
    assert 0.5 < reach.floor.latency < 0.6
    reach = reachable(layout, Target(latency=0.4), Limits(min_units=1), **measured)  # type: ignore[arg-type]
    assert not reach.reachable
    assert "400.000 milliseconds" in reach.text


def test_progress_is_the_share_of_the_way_to_the_goal_or_to_the_floor() -> None:
    whole = Account(layout_of("mlp")).costs
    goal = goal_of(Target(macs=0.2), whole)
    assert [goal.progress(share * whole.macs, 0) for share in (1.0, 0.6, 0.2, 0.1)] == pytest.approx([0, 0.5, 1, 1])
    limits = goal_of(Target(max_kl=1.0), whole)
    assert limits.progress(0.6 * whole.macs, 0.2 * whole.macs) == pytest.approx(0.5)
