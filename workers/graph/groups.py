"""Dependency groups: the units of a network that can be removed, and what each of them carries.

A unit is everything that must go together: an output channel of a convolution, the entries of the batch norm behind
it, the input channel of every layer that reads it. Units with the same footprint (the same axes of the same tensors,
equally many indices of each) form a group. An attention has two groups, its heads and the width inside them, made of
the same indices once by rows and once by columns; units of both may be removed at once.

groups = find_groups(network)
groups["blocks.0.attention.qkv:heads"].num_units
pruned = remove(network, {"blocks.0.mlp.0": [3, 17]}, groups)      # surgery.py

Removing a unit is setting it to zero wherever it appears, exactly; except that what takes a mean over channels (a
layer norm, an RMS norm) takes it over those that remain. `Group.statistics` names where that happens.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from workers.graph.cost import graph_cost
from workers.graph.labels import PINNED, LabelArray
from workers.graph.layer_graph import LayerGraph
from workers.graph.ledger import Ledger
from workers.graph.rectangles import equal_labels, resolve
from workers.graph.rules import read_network
from workers.graph.sites import Reading
from workers.graph.unit_cost import CostModel, Kept, Size, parameter_shapes

CHANNELS, HEADS, WIDTH = "channels", "heads", "head width"
SUFFIX = {CHANNELS: "", HEADS: ":heads", WIDTH: ":width"}


@dataclass(frozen=True)
class Member:
    """What the units of a group hold of one axis of one parameter or buffer: indices[unit] goes with the unit."""

    tensor: str
    axis: int
    indices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """Units that are alike. What a unit carries is what the whole network would save without it, alone."""

    name: str
    kind: str  # channels, heads, or head width
    num_units: int
    members: tuple[Member, ...]
    parameters_per_unit: int
    macs_per_unit: int  # of one example
    statistics: tuple[str, ...]  # nodes that take means over these channels, and then over those that remain


@dataclass(frozen=True)
class Pinned:
    """Channels that one operator keeps from being removed."""

    operator: str
    node: str
    reason: str
    num_channels: int
    tensors: tuple[str, ...]  # parameters and buffers whose channels they are


@dataclass(frozen=True)
class Groups(Mapping[str, Group]):
    """All groups of a network by name, in the order of its graph; and what is pinned."""

    by_name: Mapping[str, Group]
    pinned: tuple[Pinned, ...]
    size: Size  # of the whole network
    reading: Reading = field(repr=False)
    units: Mapping[str, LabelArray] = field(repr=False)  # group -> the root of each of its units
    roots: Mapping[str, LabelArray] = field(repr=False)  # kind -> the root of every label
    cost: CostModel = field(repr=False)

    def __getitem__(self, name: str) -> Group:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    def kept(self, selection: Mapping[str, Sequence[int]]) -> Kept:
        """Which labels stay when the selected units go.

        Raises `ValueError` for a group or unit that does not exist.
        """
        kept = np.ones(self.reading.ledger.num_labels, dtype=bool)
        for name, chosen in selection.items():
            check_units(self, name, chosen)
            gone = np.zeros(len(kept), dtype=bool)
            gone[self.units[name][list(chosen)]] = True
            kept &= ~gone[self.roots[self.by_name[name].kind]]
        return kept

    def size_without(self, selection: Mapping[str, Sequence[int]]) -> Size:
        """Parameters and MACs of the network that `remove` would give, exactly, without making it."""
        return self.cost.remaining(self.kept(selection))


def check_units(groups: Groups, name: str, chosen: Sequence[int]) -> None:
    """`ValueError` where `name` is no group, or a chosen unit is none of its units."""
    if name not in groups.by_name:
        raise ValueError(f"there is no group {name!r}; the groups are {', '.join(groups.by_name)}")
    wrong = [unit for unit in chosen if not 0 <= unit < groups[name].num_units]
    if wrong:
        raise ValueError(f"group {name} has units 0 to {groups[name].num_units - 1}, and no {wrong[0]}")


def find_groups(network: LayerGraph) -> Groups:
    """The dependency groups of `network`, at the sizes of its example inputs."""
    reading = read_network(network)
    ledger = reading.ledger
    components = equal_labels(ledger)
    by_heads, by_width = (resolve(ledger, components, heads=heads) for heads in (True, False))
    cost = CostModel(ledger, parameter_shapes(network), graph_cost(network).macs_by_node)
    size = cost.remaining(np.ones(ledger.num_labels, dtype=bool))
    roots = {CHANNELS: by_heads, HEADS: by_heads, WIDTH: by_width}
    groups: dict[str, Group] = {}
    units: dict[str, LabelArray] = {}
    known: set[tuple[Member, ...]] = set()
    for kind, found in candidates(ledger, roots):
        members = members_of(ledger, roots[kind], found)
        if members not in known:
            known.add(members)
            name = free_name(members[0].tensor, kind, groups)
            units[name] = found
            groups[name] = describe(name, kind, members, roots[kind], found[0], cost, size)
    pinned = pinned_channels(ledger, components.roots, by_heads)
    return Groups(groups, pinned, size, reading, units, roots, cost)


def candidates(ledger: Ledger, roots: Mapping[str, LabelArray]) -> Iterator[tuple[str, LabelArray]]:
    """Groups as (kind, roots of their units), in the order in which the graph meets them."""
    found = []
    for by_rows in (True, False):
        partition = roots[HEADS if by_rows else WIDTH]
        in_heads = np.zeros(ledger.num_labels, dtype=bool)
        for rectangle in ledger.rectangles:
            if rectangle.heads is not None:
                in_heads[partition[rectangle.labels]] = True
        for place, units in footprints(ledger, partition):
            kind = (HEADS if by_rows else WIDTH) if in_heads[units[0]] else CHANNELS
            if by_rows or kind == WIDTH:
                found.append((place, kind, units))
    for _, kind, units in sorted(found, key=lambda one: one[0]):
        yield kind, units


def footprints(ledger: Ledger, roots: LabelArray) -> list[tuple[int, LabelArray]]:
    """Units that stand in the same arrays equally often: (first array, roots of the units)."""
    counted: dict[int, list[tuple[int, int]]] = defaultdict(list)
    factors = [labels for product in ledger.products for labels in product.factors]
    for place, labels in enumerate([*ledger.slots.values(), *factors]):
        for root, count in zip(*np.unique(roots[labels], return_counts=True), strict=True):
            counted[int(root)].append((place, int(count)))
    counted.pop(PINNED, None)
    alike: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for root, footprint in counted.items():
        if footprint[0][0] < len(ledger.slots):  # a unit of no parameter at all is not to be pruned
            alike[tuple(footprint)].append(root)
    return [(footprint[0][0], np.array(sorted(units))) for footprint, units in alike.items()]


def members_of(ledger: Ledger, roots: LabelArray, units: LabelArray) -> tuple[Member, ...]:
    """What units hold of every axis of every tensor."""
    members = []
    for (tensor, axis), labels in ledger.slots.items():
        unit = np.searchsorted(units, roots[labels]).clip(max=len(units) - 1)
        (positions,) = np.nonzero(units[unit] == roots[labels])
        if len(positions):
            order = positions[np.argsort(unit[positions], kind="stable")].reshape(len(units), -1)
            members.append(Member(tensor, axis, tuple(map(tuple, order.tolist()))))
    return tuple(members)


def free_name(tensor: str, kind: str, taken: Mapping[str, Group]) -> str:
    """The module that holds the first member, with a number where that name is taken."""
    module, _, leaf = tensor.rpartition(".")
    wanted = (module or leaf) + SUFFIX[kind]
    numbers = (f"{wanted}#{number}" for number in range(2, len(taken) + 3))
    return wanted if wanted not in taken else next(name for name in numbers if name not in taken)


def describe(
    name: str,
    kind: str,
    members: tuple[Member, ...],
    roots: LabelArray,
    first: int,
    cost: CostModel,
    size: Size,
) -> Group:
    """A group with what its first unit, which is like all others, carries."""
    without = cost.remaining(roots != first)
    statistics = [node for node, labels in cost.ledger.statistics if (roots[labels] == first).any()]
    return Group(
        name=name,
        kind=kind,
        num_units=len(members[0].indices),
        members=members,
        parameters_per_unit=size.parameters - without.parameters,
        macs_per_unit=size.macs - without.macs,
        statistics=tuple(statistics),
    )


def pinned_channels(ledger: Ledger, equal: LabelArray, resolved: LabelArray) -> tuple[Pinned, ...]:
    """For each operator that pins something, the tensors whose channels it keeps."""
    found = []
    for note in ledger.pins:
        held = np.zeros(len(equal), dtype=bool)
        held[equal[note.labels]] = True
        held[PINNED] = False
        tensors = [
            tensor
            for (tensor, _), labels in ledger.slots.items()
            if (held[equal[labels]] & (resolved[labels] == PINNED)).any()
        ]
        num_channels = len(np.unique(equal[note.labels]))
        found.append(Pinned(note.operator, note.node, note.reason, num_channels, tuple(dict.fromkeys(tensors))))
    return tuple(found)
