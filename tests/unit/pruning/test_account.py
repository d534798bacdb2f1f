"""What a network costs while units go: always what surgery leaves, to the last parameter, MAC and byte."""

import numpy as np
import pytest

from tests.unit.pruning.zoo import groups_of, network_of
from workers.graph.cost import graph_cost
from workers.graph.groups import Groups
from workers.graph.surgery import remove
from workers.pruning.schedule.account import Account, CostLayout

NETWORKS = ("resnet8", "resnext", "mobilenet_v2", "densenet", "fused_qkv", "llama")


def drawn_units(groups: Groups, seed: int, share: float = 0.6) -> list[tuple[str, int]]:
    """Units of all groups in a random order, at most a share of each group."""
    generator = np.random.default_rng(seed)
    units = [
        (name, int(unit))
        for name, group in groups.items()
        for unit in generator.permutation(group.num_units)[: int(share * group.num_units)]
    ]
    return [units[place] for place in generator.permutation(len(units))]


def selection(units: list[tuple[str, int]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for name, unit in units:
        found.setdefault(name, []).append(unit)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_every_unit_that_goes_costs_exactly_what_surgery_saves(name: str) -> None:
    groups = groups_of(name)
    account = Account(CostLayout(groups))
    units = drawn_units(groups, seed=1)
    for count, (group, unit) in enumerate(units, 1):
        before, saved = account.costs, account.saving(group, [unit], "macs")
        account.remove(group, [unit])
        assert account.costs.macs == before.macs - saved
        if count % 7 == 0:
            size = groups.size_without(selection(units[:count]))
            assert (account.costs.macs, account.costs.params) == (size.macs, size.parameters)
    cost = graph_cost(remove(network_of(name), selection(units), groups))
    assert (account.costs.macs, account.costs.params, account.costs.bytes) == (cost.macs, cost.parameters, cost.bytes)


@pytest.mark.parametrize("name", ["resnet8", "fused_qkv"])
def test_what_comes_back_costs_again_what_it_did_in_any_order(name: str) -> None:
    groups = groups_of(name)
    layout = CostLayout(groups)
    account, whole = Account(layout), Account(layout).costs
    units = drawn_units(groups, seed=2)
    for group, unit in units:
        account.remove(group, [unit])
    back = units[::2]
    for group, unit in back:
        account.restore(group, [unit])
    left = [one for one in units if one not in back]
    assert account.costs == Account(layout, selection(left)).costs
    for group, unit in left:
        account.restore(group, [unit])
    assert account.costs == whole


def test_an_account_can_begin_where_units_are_gone() -> None:
    groups = groups_of("llama")
    units = drawn_units(groups, seed=3)
    account = Account(CostLayout(groups), selection(units))
    assert account.costs.macs == groups.size_without(selection(units)).macs
    assert all(account.num_left(name) == group.num_units - len(account.gone[name]) for name, group in groups.items())


def test_seconds_are_what_was_measured_less_what_units_take() -> None:
    groups = groups_of("mlp")
    first, second = groups
    account = Account(CostLayout(groups), {first: [0, 1]}, seconds=0.5, seconds_per_unit={first: 0.01})
    assert account.cost("latency") == 0.5
    assert account.saving(first, [2, 3], "latency") == pytest.approx(0.02)
    assert account.saving(second, [2], "latency") == 0
    account.remove(first, [2, 3])
    account.remove(second, [0])
    assert account.cost("latency") == pytest.approx(0.48)
    account.restore(first, [3])
    assert account.cost("latency") == pytest.approx(0.49)


def test_neighbours_are_the_groups_whose_savings_change() -> None:
    groups = groups_of("densenet")
    layout = CostLayout(groups)
    for name in groups:
        account = Account(layout)
        before = {other: account.saving(other, [1], "macs") for other in groups}
        account.remove(name, [0])
        changed = {other for other in groups if account.saving(other, [1], "macs") != before[other]}
        assert changed <= set(layout.neighbours[name])
