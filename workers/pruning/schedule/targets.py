"""How small the network shall become, and whether it can become so small.

What remains with every group at its floor is known before anything is removed, and exactly: units of a group are
alike, so that it does not matter which of them go. A target below that is refused with what stands in its way.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from service.contract.prune_spec import Absolute, Target
from workers.graph.groups import Groups
from workers.graph.module_tree import split_name
from workers.pruning.schedule.account import Account, CostLayout, CostName, Costs
from workers.pruning.schedule.limits import Limits

MOST_HOLDERS = 5  # of which a refusal speaks

UNITS: Mapping[CostName, tuple[str, float]] = {
    "macs": ("MACs", 1),
    "params": ("parameters", 1),
    "bytes": ("bytes", 1),
    "latency": ("milliseconds at batch 1", 1000),
}


@dataclass(frozen=True)
class Goal:
    """A cost that the whole network is to come down to."""

    cost: CostName
    value: float  # MACs, parameters, bytes or seconds; 0 where only limits are given
    whole: float  # of the network that the job began with

    @property
    def open(self) -> bool:
        """Whether as much is to go as the limits allow."""
        return self.value == 0

    def progress(self, now: float, floor: float) -> float:
        """Which share of the way is done, in cost that has gone."""
        way = self.whole - max(self.value, floor)
        return 1.0 if way <= 0 else min(max((self.whole - now) / way, 0.0), 1.0)


@dataclass(frozen=True)
class Holder:
    """A layer or an operator that keeps some of the cost when every group is at its floor."""

    name: str
    amount: float
    cost: CostName
    reasons: tuple[str, ...]  # the operators that pin its channels, with their reasons; none where floors hold it


@dataclass(frozen=True)
class Reach:
    """How far the network can go, and what holds the rest."""

    goal: Goal
    floor: Costs  # with every group at its floor
    holders: tuple[Holder, ...]  # the largest first

    @property
    def reachable(self) -> bool:
        """Whether the goal can be reached."""
        return self.goal.open or self.floor.of(self.goal.cost) <= self.goal.value

    @property
    def text(self) -> str:
        """The same in words, for whoever set the target."""
        goal, floor = self.goal, self.floor.of(self.goal.cost)
        what = f"with every group at its floor {amount(goal.cost, floor)} ({floor / goal.whole:.1%}) remain"
        if goal.open:
            return f"The limits decide how much goes; {what}."
        asked = f"{amount(goal.cost, goal.value)} ({goal.value / goal.whole:.1%} of {amount(goal.cost, goal.whole)})"
        if self.reachable:
            return f"The target of {asked} can be reached: {what}."
        held = "; ".join(
            f"{one.name} with {amount(one.cost, one.amount)}" + (f" ({', '.join(one.reasons)})" if one.reasons else "")
            for one in self.holders
        )
        least = math.ceil(1000 * floor / goal.whole) / 1000
        return (
            f"The target of {asked} cannot be reached: {what}. Most of that is held by {held}. "
            f"Ask for at least {least:g} of the whole, or for a smaller min_units, keep or round_to."
        )


def amount(cost: CostName, value: float) -> str:
    """A cost with its unit, for people."""
    name, factor = UNITS[cost]
    return f"{value * factor:,.3f} {name}" if cost == "latency" else f"{value:,.0f} {name}"


def goal_of(target: Target, whole: Costs) -> Goal:
    """What the whole network is to cost; with limits alone, MACs are what steps are counted in."""
    asked = target.cost
    if asked is None:
        return Goal("macs", 0.0, whole.macs)
    name, value = asked
    cost = COST_NAMES[name]
    before = whole.of(cost)
    return Goal(cost, value.absolute if isinstance(value, Absolute) else value * before, before)


COST_NAMES: Mapping[str, CostName] = {"macs": "macs", "params": "params", "bytes": "bytes", "latency": "latency"}


def at_floor(
    layout: CostLayout,
    limits: Limits,
    *,
    seconds: float = 0.0,
    seconds_per_unit: Mapping[str, float] | None = None,
) -> Account:
    """The account of the network with every group at its floor; seconds are an estimate."""
    account = Account(layout, seconds=seconds, seconds_per_unit=seconds_per_unit)
    for name, group in layout.groups.items():
        account.remove(name, range(group.num_units - limits.lowest(group)))
    return account


def reachable(
    layout: CostLayout,
    target: Target,
    limits: Limits,
    *,
    seconds: float = 0.0,
    seconds_per_unit: Mapping[str, float] | None = None,
) -> Reach:
    """Whether `target` can be reached with what may be removed; nothing is removed to find out.

    A latency can be judged where the network's `seconds` and what each unit takes of them were measured; it is an
    estimate then, where everything else is exact.
    """
    whole = Account(layout, seconds=seconds).costs
    account = at_floor(layout, limits, seconds=seconds, seconds_per_unit=seconds_per_unit)
    goal = goal_of(target, whole)
    return Reach(goal, account.costs, holders(account, goal.cost))


def holders(account: Account, cost: CostName) -> tuple[Holder, ...]:
    """The layers and operators that cost most; of a latency, those with most MACs."""
    counted: CostName = "macs" if cost == "latency" else cost
    amounts: dict[str, float] = defaultdict(float)
    tensors: dict[str, set[str]] = defaultdict(set)
    layers = layers_by_node(account.groups)
    for term, value in zip(account.layout.terms, account.values, strict=True):
        weight = term.weights.get(counted, 0)
        if weight:
            layer = layers.get(term.name, term.name) if counted == "macs" else split_name(term.name)[0] or term.name
            amounts[layer] += weight * value
            tensors[layer].add(term.name)
    largest = sorted(amounts, key=lambda layer: -amounts[layer])[:MOST_HOLDERS]
    return tuple(
        Holder(layer, amounts[layer], counted, reasons(account.groups, layer, tensors[layer])) for layer in largest
    )


def layers_by_node(groups: Groups) -> dict[str, str]:
    """Node -> the layer that it calls."""
    nodes = groups.reading.network.graph.nodes
    return {node.name: str(node.target) for node in nodes if node.op == "call_module"}


def reasons(groups: Groups, layer: str, names: set[str]) -> tuple[str, ...]:
    """Which operators pin channels of a layer's tensors, and why."""
    found = [
        f"{pin.operator}: {pin.reason}"
        for pin in groups.pinned
        if pin.node in names or any(tensor in names or split_name(tensor)[0] == layer for tensor in pin.tensors)
    ]
    return tuple(dict.fromkeys(found))
