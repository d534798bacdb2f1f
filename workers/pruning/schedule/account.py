"""The account of a removal: what a network still costs, exactly, while units go and come back.

A cost is a sum of terms: a tensor is the product of what its axes keep, a matrix product of what its factors keep
(unit_cost.py). A unit changes few of them, so that the next cost is found without adding up the whole network; both
are the same integers, and a test compares them with the network after surgery.

Units are the teacher's. A label that two removed units share, as a head and a column of its width do, goes once.

Bytes are those of parameters and buffers as they are held, shared ones once (workers/graph/cost.py); a weights file
adds a header to them. Seconds are an estimate: what is measured of the network, less what each unit that goes was
measured to take.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from workers.graph.cost import graph_cost
from workers.graph.groups import Groups
from workers.graph.labels import LabelArray
from workers.graph.module_tree import tensor_at

CostName = Literal["macs", "params", "bytes", "latency"]
Selection = Mapping[str, Sequence[int]]  # group -> its units, by the teacher's numbers


@dataclass(frozen=True)
class Costs:
    """What a network costs; MACs are those of one example, seconds those of one pass at batch 1."""

    macs: int
    params: int
    bytes: int
    latency: float

    def of(self, cost: CostName) -> float:
        """One of them by its name."""
        found: float = getattr(self, cost)
        return found


@dataclass(frozen=True)
class Term:
    """A part of a cost: ⌊Σ multiplier · Π (labels left of an array) / divisor⌋, times a weight for each cost."""

    name: str  # of a tensor, or of a node
    parts: tuple[tuple[int, tuple[int, ...]], ...]  # (multiplier, arrays)
    divisor: int
    weights: Mapping[str, int]

    def value(self, left: Sequence[int]) -> int:
        """How much of it there is when that many labels of each array are left."""
        total = 0
        for multiplier, arrays in self.parts:
            product = multiplier
            for array in arrays:
                product *= left[array]
            total += product
        return total // self.divisor


class CostLayout:
    """Where the units of a network's groups stand in what it costs; found once, for any number of accounts."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self.terms = terms_of(groups)
        self.whole = [labels.size for labels in groups.cost.arrays]
        self.terms_on = terms_on(self.terms, len(self.whole))
        self.labels = unit_labels(groups)
        self._places = places_of(groups)
        self.alike = {name: self.counts(self.labels[name][0]) for name in alone(self.labels, self.num_labels)}
        arrays = {name: self.counts(np.concatenate(labels)) for name, labels in self.labels.items()}
        self.neighbours = neighbours_of(arrays, self.terms_on)
        self._affected: dict[tuple[int, ...], tuple[int, ...]] = {}

    @property
    def num_labels(self) -> int:
        return self.groups.reading.ledger.num_labels

    def labels_of(self, name: str, units: Sequence[int]) -> LabelArray:
        """The labels of some units of a group."""
        return np.concatenate([self.labels[name][unit] for unit in units]) if units else np.empty(0, np.int64)

    def counts(self, labels: LabelArray) -> dict[int, int]:
        """How many indices of each array have these labels."""
        starts, arrays, counts = self._places
        rows = np.concatenate([np.arange(starts[label], starts[label + 1]) for label in labels.tolist()])
        held = np.bincount(arrays[rows], weights=counts[rows])
        return {int(array): int(held[array]) for array in np.flatnonzero(held)}

    def affected(self, change: Mapping[int, int]) -> tuple[int, ...]:
        """The terms that depend on any of the arrays that change."""
        key = tuple(change)
        if key not in self._affected:
            self._affected[key] = tuple(sorted({term for array in key for term in self.terms_on[array]}))
        return self._affected[key]


class Account:
    """What is left of a network's cost, unit by unit."""

    def __init__(
        self,
        layout: CostLayout,
        gone: Selection | None = None,
        *,
        seconds: float = 0.0,
        seconds_per_unit: Mapping[str, float] | None = None,
    ) -> None:
        """Begin where the units `gone` are gone, and a pass takes `seconds`."""
        self.layout, self.groups = layout, layout.groups
        self.left = list(layout.whole)
        self.values = [term.value(self.left) for term in layout.terms]
        self.totals = {
            cost: sum(term.weights.get(cost, 0) * value for term, value in zip(layout.terms, self.values, strict=True))
            for cost in ("macs", "params", "bytes")
        }
        self.gone: dict[str, set[int]] = {name: set() for name in layout.groups}
        self.seconds_per_unit = dict(seconds_per_unit or {})
        self._taken = np.zeros(layout.num_labels, dtype=np.int64)  # how many removed units hold a label
        self.seconds = 0.0
        for name, units in (gone or {}).items():
            self.remove(name, units)
        self.seconds = seconds

    @property
    def costs(self) -> Costs:
        """What the network costs now."""
        return Costs(self.totals["macs"], self.totals["params"], self.totals["bytes"], self.seconds)

    def cost(self, cost: CostName) -> float:
        """What the network costs now, by one measure."""
        return self.seconds if cost == "latency" else self.totals[cost]

    def num_left(self, name: str) -> int:
        """How many units a group has left."""
        return self.groups[name].num_units - len(self.gone[name])

    def neighbours(self, name: str) -> tuple[str, ...]:
        """The groups whose units save another amount when a unit of `name` goes, itself among them."""
        return self.layout.neighbours[name]

    def remove(self, name: str, units: Sequence[int]) -> None:
        """Units that are there go."""
        assert self.gone[name].isdisjoint(units), "a unit goes once"  # noqa: S101
        self._move(name, units, -1)
        self.gone[name].update(units)

    def restore(self, name: str, units: Sequence[int]) -> None:
        """Units that went come back."""
        assert self.gone[name].issuperset(units), "only what went comes back"  # noqa: S101
        self._move(name, units, +1)
        self.gone[name].difference_update(units)

    def saving(self, name: str, units: Sequence[int], cost: CostName) -> float:
        """What the network would cost less without these units, which are still there."""
        if cost == "latency":
            return self.seconds_per_unit.get(name, 0.0) * len(units)
        change = self._change(name, units, holders=0)
        self._shift(change, -1)
        saved = 0
        for place in self.layout.affected(change):
            term = self.layout.terms[place]
            weight = term.weights.get(cost, 0)
            if weight:
                saved += weight * (self.values[place] - term.value(self.left))
        self._shift(change, +1)
        return saved

    def _change(self, name: str, units: Sequence[int], holders: int) -> dict[int, int]:
        """Array -> how many of its indices go, held by no removed unit, or come back, held by one."""
        alike = self.layout.alike.get(name)
        if alike is not None:
            return {array: count * len(units) for array, count in alike.items()}
        labels = self.layout.labels_of(name, units)
        moving = labels[self._taken[labels] == holders]
        return self.layout.counts(moving) if len(moving) else {}

    def _shift(self, change: Mapping[int, int], sign: int) -> None:
        for array, count in change.items():
            self.left[array] += sign * count

    def _move(self, name: str, units: Sequence[int], sign: int) -> None:
        change = self._change(name, units, holders=0 if sign < 0 else 1)
        self._shift(change, sign)
        for place in self.layout.affected(change):
            term, before = self.layout.terms[place], self.values[place]
            self.values[place] = after = term.value(self.left)
            for cost, weight in term.weights.items():
                self.totals[cost] += weight * (after - before)
        if name not in self.layout.alike:
            self._taken[self.layout.labels_of(name, units)] -= sign
        self.seconds += sign * self.seconds_per_unit.get(name, 0.0) * len(units)


def terms_of(groups: Groups) -> list[Term]:
    """Every parameter and buffer, and every node that multiplies matrices."""
    network, model = groups.reading.network, groups.cost
    axes: dict[str, dict[int, int]] = defaultdict(dict)
    for place, (name, axis) in enumerate(groups.reading.ledger.slots):
        axes[name][axis] = place
    terms = []
    for is_parameter, names in ((1, network.named_parameters()), (0, network.named_buffers())):
        for name, _ in names:
            tensor = tensor_at(network, name)
            fixed = math.prod(size for axis, size in enumerate(tensor.shape) if axis not in axes[name])
            weights = {"params": is_parameter, "bytes": tensor.element_size()}
            terms.append(Term(name, ((fixed, tuple(axes[name].values())),), 1, weights))
    whole = [labels.size for labels in model.arrays]
    nodes = graph_cost(network).macs_by_node
    for node, (macs, parts) in zip(nodes, model.products, strict=True):
        divisors = [share.denominator * math.prod(whole[array] for array in arrays) for share, arrays in parts]
        divisor = math.lcm(*divisors)
        scaled = tuple(
            (macs * share.numerator * (divisor // own), tuple(arrays))
            for (share, arrays), own in zip(parts, divisors, strict=True)
        )
        terms.append(Term(node, scaled, divisor, {"macs": 1}))
    return terms


def terms_on(terms: Sequence[Term], num_arrays: int) -> list[list[int]]:
    """For each array the terms that depend on it."""
    found: list[list[int]] = [[] for _ in range(num_arrays)]
    for place, term in enumerate(terms):
        for array in {array for _, arrays in term.parts for array in arrays}:
            found[array].append(place)
    return found


def places_of(groups: Groups) -> tuple[LabelArray, LabelArray, LabelArray]:
    """Where each label stands: (starts, arrays, counts); of label i, arrays[starts[i]:starts[i + 1]], and how often."""
    arrays, num_labels = groups.cost.arrays, groups.reading.ledger.num_labels
    where = np.repeat(np.arange(len(arrays)), [labels.size for labels in arrays])
    which = np.concatenate([labels.reshape(-1) for labels in arrays]) if arrays else where
    both, counts = np.unique(which * max(len(arrays), 1) + where, return_counts=True)
    labels, places = np.divmod(both, max(len(arrays), 1))
    return np.searchsorted(labels, np.arange(num_labels + 1)), places, counts


def unit_labels(groups: Groups) -> dict[str, list[LabelArray]]:
    """The labels of every unit of every group."""
    found: dict[str, list[LabelArray]] = {}
    orders: dict[int, tuple[LabelArray, LabelArray]] = {}
    for name, roots in groups.roots.items():
        if id(roots) not in orders:
            order = np.argsort(roots, kind="stable")
            orders[id(roots)] = (order, roots[order])
        order, ordered = orders[id(roots)]
        units = groups.units[name]
        starts, ends = np.searchsorted(ordered, units), np.searchsorted(ordered, units, side="right")
        found[name] = [order[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return found


def alone(labels: Mapping[str, Sequence[LabelArray]], num_labels: int) -> list[str]:
    """The groups that share no label with another; their units are alike, whatever else has gone."""
    holders = np.zeros(num_labels, dtype=np.int64)
    for units in labels.values():
        holders[np.concatenate(units)] += 1
    return [name for name, units in labels.items() if (holders[np.concatenate(units)] == 1).all()]


def neighbours_of(
    arrays: Mapping[str, Iterable[int]], terms_by_array: Sequence[Sequence[int]]
) -> dict[str, tuple[str, ...]]:
    """Groups that have a term in common."""
    terms = {name: {term for array in held for term in terms_by_array[array]} for name, held in arrays.items()}
    by_term: dict[int, list[str]] = defaultdict(list)
    for name, places in terms.items():
        for place in places:
            by_term[place].append(name)
    order = {name: place for place, name in enumerate(arrays)}
    return {
        name: tuple(sorted({other for place in places for other in by_term[place]} | {name}, key=order.__getitem__))
        for name, places in terms.items()
    }
