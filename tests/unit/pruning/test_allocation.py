"""Which units go: the least needed first by each allocation's measure, down to a cost and within limits."""

from collections.abc import Mapping

import pytest
import torch

from service.contract.errors import Invalid
from tests.reference import allocation as reference
from tests.unit.pruning.zoo import groups_of, layout_of, random_scores
from workers.graph.groups import Groups
from workers.pruning.schedule.account import Account, CostName
from workers.pruning.schedule.allocation import Cut, allocate
from workers.pruning.schedule.limits import Limits, check_keep
from workers.pruning.schedule.structures import classes
from workers.pruning.scores import Scores

COMPARED = ("global", "per_mac", "per_parameter", "uniform", "isomorphic")


def cut_of(
    name: str,
    scores: Scores,
    allocation: str,
    share: float,
    *,
    cost: CostName = "macs",
    limits: Limits | None = None,
    max_group_share: float = 1.0,
) -> tuple[Cut, Account]:
    account = Account(layout_of(name))
    goal = share * account.cost(cost)
    return allocate(account, scores, allocation, cost, goal, limits or Limits(), max_group_share), account


def left(groups: Groups, cut: Cut) -> dict[str, int]:
    return {name: group.num_units - len(cut.selection.get(name, ())) for name, group in groups.items()}


@pytest.mark.parametrize("allocation", COMPARED)
@pytest.mark.parametrize("name", ["mlp", "resnet8", "fused_qkv"])
def test_the_fast_way_takes_the_units_that_the_naive_one_takes(name: str, allocation: str) -> None:
    groups = groups_of(name)
    scores = random_scores(groups, seed=4, negative=0.1)
    gone = {group: [1] for group in groups}
    account = Account(layout_of(name), gone)
    macs, parameters = reference.macs_of(groups), reference.parameters_of(groups)
    goal = 0.8 * macs(gone)
    cut = allocate(account, scores, allocation, "macs", goal, Limits(min_units=3), 0.4)
    there = {one: group.num_units - 1 for one, group in groups.items()}
    expected = reference.greedy(
        groups,
        {one: values.tolist() for one, values in scores.values.items()},
        allocation,
        macs,
        goal,
        gone=gone,
        floors={one: reference.step_floor(count, min(3, groups[one].num_units), 0.4) for one, count in there.items()},
        saving_of=parameters if allocation == "per_parameter" else macs,
        classes=classes(groups),
    )
    assert expected
    assert {one: list(units) for one, units in cut.selection.items()} == expected


def test_what_a_unit_saves_is_that_of_the_network_as_it_is_by_then() -> None:
    groups = groups_of("mlp")
    scores = random_scores(groups, seed=5)
    cut, _ = cut_of("mlp", scores, "per_mac", 0.3)
    expected = reference.greedy(
        groups,
        {name: values.tolist() for name, values in scores.values.items()},
        "per_mac",
        reference.macs_of(groups),
        0.3 * groups.size.macs,
        gone={},
        floors=dict.fromkeys(groups, 2),
    )
    assert {name: list(units) for name, units in cut.selection.items()} == expected


@pytest.mark.parametrize("cost", ["macs", "params", "bytes"])
@pytest.mark.parametrize("allocation", [*COMPARED, "per_byte"])
@pytest.mark.parametrize("name", ["resnet8", "bert"])
def test_the_cost_ends_below_the_goal_by_less_than_any_unit_that_went(
    name: str, allocation: str, cost: CostName
) -> None:
    groups = groups_of(name)
    for share in (0.7, 0.35):
        cut, account = cut_of(name, random_scores(groups), allocation, share, cost=cost)
        goal = share * Account(account.layout).cost(cost)
        assert account.cost(cost) <= goal
        for group, units in cut.selection.items():
            worst = max(units, key=lambda unit: float(random_scores(groups).values[group][unit]))
            account.restore(group, [worst])
            assert account.cost(cost) > goal
            account.remove(group, [worst])


@pytest.mark.parametrize("allocation", COMPARED)
def test_a_smaller_goal_leaves_fewer_units(allocation: str) -> None:
    groups = groups_of("vgg")
    sizes = []
    for share in (0.9, 0.7, 0.5, 0.3, 0.1):
        cut, account = cut_of("vgg", random_scores(groups), allocation, share)
        sizes.append((account.costs.macs, sum(left(groups, cut).values())))
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_negative_scores_go_first_and_are_not_divided() -> None:
    groups = groups_of("mlp")
    scores = random_scores(groups)
    first, second = groups
    # The dearer group's unit does less harm in all, the cheaper one's less for each MAC.
    scores.values[first][3], scores.values[second][5] = -0.5, -0.4
    cut, _ = cut_of("mlp", scores, "per_mac", 0.999)
    assert cut.selection == {first: (3,)}
    cut, _ = cut_of("mlp", scores, "per_mac", 0.95)
    assert 3 in cut.selection[first]
    assert 5 in cut.selection[second]


def test_units_that_do_harm_do_not_come_back_to_fill_the_room() -> None:
    groups = groups_of("mlp")
    scores = random_scores(groups)
    _, second = groups
    scores.values[second][:4] = -1.0
    big, small = (groups[name].macs_per_unit for name in groups)
    assert big > small
    cut, account = cut_of("mlp", scores, "global", 0.9)
    assert set(cut.selection[second]) >= {0, 1, 2, 3}
    assert account.costs.macs <= 0.9 * groups.size.macs


@pytest.mark.parametrize("name", ["resnet8", "vit"])
def test_uniform_takes_the_same_share_of_every_group(name: str) -> None:
    groups = groups_of(name)
    cut, _ = cut_of(name, random_scores(groups), "uniform", 0.5, limits=Limits(min_units=1))
    for group, count in left(groups, cut).items():
        others = [left(groups, cut)[other] / groups[other].num_units for other in groups]
        share = count / groups[group].num_units
        # To within one unit of this group and one of the others, of which some came back.
        slack = 1.5 / groups[group].num_units + 1.5 / min(one.num_units for one in groups.values())
        assert all(abs(share - other) <= slack for other in others)


def test_uniform_units_go_by_score_within_their_group() -> None:
    groups = groups_of("resnet8")
    scores = random_scores(groups)
    cut, _ = cut_of("resnet8", scores, "uniform", 0.5)
    for name, units in cut.selection.items():
        order = scores.values[name].argsort().tolist()
        assert set(units) == set(order[: len(units)])


def test_groups_of_the_same_structure_are_one_class() -> None:
    groups = groups_of("resnet8")
    found = set(classes(groups).values())
    # The inner channels of the three blocks are alike; the streams of the stages differ in what feeds them.
    assert ("layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1") in found
    attention = classes(groups_of("vit"))
    heads = [name for name in groups_of("vit") if name.endswith(":heads")]
    assert len(heads) > 1
    assert set(attention[heads[0]]) == set(heads)


def test_isomorphic_takes_the_same_share_of_every_class() -> None:
    groups = groups_of("vit")
    scores = random_scores(groups)
    for name in next(iter(classes(groups).values())):
        scores.values[name] = scores.values[name] + 100  # another scale, which must not matter
    cut, _ = cut_of("vit", scores, "isomorphic", 0.6, limits=Limits(min_units=1))
    shares = {}
    for members in set(classes(groups).values()):
        total = sum(groups[name].num_units for name in members)
        shares[members] = (sum(len(cut.selection.get(name, ())) for name in members) / total, 1 / total)
    average = sum(share for share, _ in shares.values()) / len(shares)
    assert average > 0.1
    assert all(abs(share - average) <= 2 * unit + 0.1 for share, unit in shares.values())


@pytest.mark.parametrize("allocation", COMPARED)
def test_no_group_falls_below_its_floor(allocation: str) -> None:
    groups = groups_of("resnet8")
    some = next(iter(groups))
    limits = Limits(min_units=5, keep={some: groups[some].num_units - 2})
    cut, account = cut_of("resnet8", random_scores(groups), allocation, 0.0, limits=limits)
    counts = left(groups, cut)
    assert counts[some] == groups[some].num_units - 2
    assert all(count == 5 for name, count in counts.items() if name != some)
    assert account.costs.macs > 0


@pytest.mark.parametrize("round_to", [2, 4, 8])
@pytest.mark.parametrize("allocation", COMPARED)
def test_what_is_left_of_a_group_is_a_multiple(allocation: str, round_to: int) -> None:
    groups = groups_of("vit")
    cut, account = cut_of("vit", random_scores(groups), allocation, 0.55, limits=Limits(round_to=round_to))
    assert account.costs.macs <= 0.55 * groups.size.macs
    for name, count in left(groups, cut).items():
        if name in cut.selection and groups[name].num_units >= round_to:
            assert count % round_to == 0
            assert count >= round_to


def test_small_groups_are_not_held_to_multiples() -> None:
    groups = groups_of("vit")
    heads = next(name for name in groups if name.endswith(":heads"))
    assert groups[heads].num_units < 8
    assert Limits(round_to=8).floor(groups[heads]) == 2
    assert Limits(round_to=8).quantum(groups[heads]) == 1


def test_a_step_takes_at_most_a_share_of_a_group_and_may_always_take_one() -> None:
    groups = groups_of("resnet8")
    scores = random_scores(groups)
    some = next(iter(groups))
    scores.values[some] -= 10.0  # all of this group would go first
    cut, _ = cut_of("resnet8", scores, "global", 0.5, max_group_share=0.3)
    assert len(cut.selection[some]) == int(0.3 * groups[some].num_units)
    assert all(len(units) <= max(1, int(0.3 * groups[name].num_units)) for name, units in cut.selection.items())
    cut, _ = cut_of("resnet8", scores, "global", 0.5, max_group_share=0.001)
    assert all(len(units) == 1 for units in cut.selection.values())
    assert len(cut.selection) == len(groups)


@pytest.mark.parametrize("allocation", ["per_mac", "global", "isomorphic", "per_millisecond"])
def test_scores_of_one_layer_alone_are_not_compared_across_layers(allocation: str) -> None:
    groups = groups_of("resnet8")
    scores = random_scores(groups)
    scores = Scores(scores.values, comparable=False)
    cut, _ = cut_of("resnet8", scores, allocation, 0.5)
    uniform, _ = cut_of("resnet8", scores, "uniform", 0.5)
    assert cut.selection == uniform.selection
    assert any(allocation in note and "uniform" in note for note in cut.notes)
    assert not uniform.notes


def test_what_was_not_judged_stays() -> None:
    groups = groups_of("mlp")
    scores = random_scores(groups)
    first, second = groups
    scores.values[first][:10] = torch.nan
    cut, _ = cut_of("mlp", scores, "global", 0.2)
    assert min(cut.selection[first]) >= 10
    only: Mapping[str, torch.Tensor] = {second: scores.values[second]}
    cut, _ = cut_of("mlp", Scores(only), "global", 0.7)
    assert set(cut.selection) == {second}


def test_milliseconds_say_which_group_is_worth_cutting() -> None:
    groups = groups_of("mlp")
    first, second = groups
    same = Scores({name: torch.rand(group.num_units).double() + 1 for name, group in groups.items()})
    account = Account(layout_of("mlp"), seconds=1.0, seconds_per_unit={first: 1e-5, second: 1e-2})
    cut = allocate(account, same, "per_millisecond", "latency", 0.95, Limits())
    assert set(cut.selection) == {second}
    assert account.cost("latency") <= 0.95 < account.cost("latency") + 1e-2


def test_the_cut_parts_the_scores_of_a_group() -> None:
    groups = groups_of("resnet8")
    scores = random_scores(groups)
    for allocation in COMPARED:
        cut, _ = cut_of("resnet8", scores, allocation, 0.6)
        for name, units in cut.selection.items():
            values, at = scores.values[name], cut.cuts[name]
            assert at is not None
            stay = [unit for unit in range(groups[name].num_units) if unit not in units]
            assert float(values[list(units)].max()) <= at <= float(values[stay].min())


def test_a_group_that_lost_nothing_has_the_cut_at_which_it_would_have() -> None:
    groups = groups_of("mlp")
    scores = random_scores(groups)
    first, second = groups
    scores.values[second] += 50.0
    for allocation in ("global", "per_mac"):
        cut, account = cut_of("mlp", scores, allocation, 0.97)
        assert second not in cut.selection
        at, highest = cut.cuts[second], float(scores.values[first][list(cut.selection[first])].max())
        there = next(unit for unit in range(groups[first].num_units) if unit not in cut.selection[first])
        ratio = account.saving(second, [0], "macs") / account.saving(first, [there], "macs")
        saved = ratio if allocation == "per_mac" else 1.0
        assert at is not None
        assert at == pytest.approx(highest * saved, rel=0.2)
        assert at < float(scores.values[second].min())


def test_what_is_to_be_kept_must_exist() -> None:
    groups = groups_of("mlp")
    check_keep(groups, dict.fromkeys(groups, 3))
    with pytest.raises(Invalid, match="no_such_group"):
        check_keep(groups, {"no_such_group": 3})
    with pytest.raises(Invalid, match="1000 units"):
        check_keep(groups, {next(iter(groups)): 1000})
