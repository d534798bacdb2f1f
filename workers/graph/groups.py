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
from numpy.typing import NDArray

from workers.graph.components import Components
from workers.graph.cost import graph_cost
from workers.graph.labels import PINNED, LabelArray
from workers.graph.layer_graph import LayerGraph
from workers.graph.ledger import Ledger
from workers.graph.rectangles import equal_labels, resolve
from workers.graph.rules import read_network
from workers.graph.sites import Reading
from workers.graph.unit_cost import CostModel, Kept, Size, cost_model

CHANNELS, HEADS, WIDTH = "channels", "heads", "head width"
SUFFIX = {CHANNELS: "", HEADS: ":heads", WIDTH: ":width"}


@dataclass(frozen=True, eq=False)
class Member:
    """What the units of a group hold of one axis of one parameter or buffer: indices[unit] goes with the unit."""

    tensor: str
    axis: int
    indices: LabelArray  # (units, indices of a unit)

    @property
    def key(self) -> tuple[str, int, bytes]:
        """The same for the same indices."""
        return self.tensor, self.axis, self.indices.tobytes()


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
    roots: Mapping[str, LabelArray] = field(repr=False)  # group -> the root of every label, in its partition
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
            kept &= ~gone[self.roots[name]]
        return kept

    def size_without(self, selection: Mapping[str, Sequence[int]]) -> Size:
        """Parameters and MACs of the network that `remove` would give, exactly, without making it."""
        return self.cost.size(self.cost.left_by(self.kept(selection)))


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
    cost = cost_model(ledger, network, graph_cost(network).macs_by_node)
    groups: dict[str, Group] = {}
    units: dict[str, LabelArray] = {}
    roots: dict[str, LabelArray] = {}
    known: set[tuple[tuple[str, int, bytes], ...]] = set()
    for kind, footprint, partition in candidates(ledger, components, cost):
        members = members_of(ledger, partition, footprint)
        key = tuple(member.key for member in members)
        if key not in known:
            known.add(key)
            name = free_name(members[0].tensor, kind, groups)
            units[name], roots[name] = footprint.units, partition
            groups[name] = describe(name, kind, members, partition, footprint, ledger, cost)
    size = cost.size([labels.size for labels in cost.arrays])
    return Groups(groups, pinned_channels(ledger, components), size, reading, units, roots, cost)


@dataclass(frozen=True)
class Footprint:
    """The arrays in which alike units stand, and how often each unit does; by the arrays' places in the cost model."""

    arrays: tuple[int, ...]
    counts: tuple[int, ...]
    units: LabelArray  # their roots


def candidates(ledger: Ledger, components: Components, cost: CostModel) -> list[tuple[str, Footprint, LabelArray]]:
    """Groups as (kind, footprint, partition), in the order in which the graph meets them.

    From the partition by width come only groups inside heads; everything else is the same in both.
    """
    found = []
    for heads in (True, False):
        partition = resolve(ledger, components, heads=heads)
        rows, columns = kinds(ledger, partition)
        for footprint in footprints(cost.arrays, len(ledger.slots), partition):
            first = footprint.units[0]
            kind = HEADS if rows[first] else WIDTH if columns[first] else CHANNELS
            if heads or kind == WIDTH:
                found.append((kind, footprint, partition))
    return sorted(found, key=lambda one: one[1].arrays[0])


def kinds(ledger: Ledger, partition: LabelArray) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For every label, whether it is the root of a head, or of a part of the width inside heads."""
    rows, columns = np.zeros(len(partition), dtype=bool), np.zeros(len(partition), dtype=bool)
    for rectangle in ledger.rectangles:
        if rectangle.heads is not None:
            roots = partition[rectangle.labels]
            across = (roots == roots.take([0], rectangle.heads)).all()
            (columns if across else rows)[roots] = True
    return rows, columns


def footprints(arrays: Sequence[LabelArray], num_slots: int, roots: LabelArray) -> list[Footprint]:
    """Units that stand in the same arrays equally often."""
    where = np.repeat(np.arange(len(arrays)), [labels.size for labels in arrays])
    which = np.concatenate([roots[labels].reshape(-1) for labels in arrays]) if arrays else where
    both, counts = np.unique(which * len(arrays) + where, return_counts=True)
    units, places = np.divmod(both, max(len(arrays), 1))
    starts = np.flatnonzero(np.diff(units, prepend=-1))
    ends = [*starts[1:].tolist(), len(units)]
    rows = np.stack([places, counts], 1)
    alike: dict[bytes, list[int]] = defaultdict(list)  # the rows of a unit, as bytes -> where their first stands
    for start, end in zip(starts.tolist(), ends, strict=True):
        # A unit that holds nothing of any tensor is not to be pruned; nor is what is pinned.
        if units[start] != PINNED and places[start] < num_slots:
            alike[rows[start:end].tobytes()].append(start)
    found = []
    for row, firsts in alike.items():
        pairs = np.frombuffer(row, dtype=rows.dtype).reshape(-1, 2)
        found.append(Footprint(tuple(pairs[:, 0].tolist()), tuple(pairs[:, 1].tolist()), units[firsts]))
    return found


def members_of(ledger: Ledger, roots: LabelArray, footprint: Footprint) -> tuple[Member, ...]:
    """What units hold of every axis of every tensor."""
    slots = list(ledger.slots.items())
    unit_of = np.full(len(roots), -1)
    unit_of[footprint.units] = np.arange(len(footprint.units))
    members = []
    for place, count in zip(footprint.arrays, footprint.counts, strict=True):
        if place < len(slots):
            (tensor, axis), labels = slots[place]
            unit = unit_of[roots[labels]]
            order = np.argsort(unit, kind="stable")[-count * len(footprint.units) :]
            members.append(Member(tensor, axis, order.reshape(-1, count)))
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
    footprint: Footprint,
    ledger: Ledger,
    cost: CostModel,
) -> Group:
    """A group with what one of its units, which are alike, carries."""
    left = [labels.size for labels in cost.arrays]
    whole = cost.size(left)
    for place, count in zip(footprint.arrays, footprint.counts, strict=True):
        left[place] -= count
    without = cost.size(left)
    statistics = [node for node, labels in ledger.statistics if (roots[labels] == footprint.units[0]).any()]
    return Group(
        name=name,
        kind=kind,
        num_units=len(footprint.units),
        members=members,
        parameters_per_unit=whole.parameters - without.parameters,
        macs_per_unit=whole.macs - without.macs,
        statistics=tuple(statistics),
    )


def pinned_channels(ledger: Ledger, components: Components) -> tuple[Pinned, ...]:
    """For each operator that pins something, the tensors whose channels could go but for pins."""
    free = resolve(ledger, components, heads=True, pinned=False)
    notes: dict[tuple[str, str, str], list[LabelArray]] = defaultdict(list)
    for note in ledger.pins:
        notes[note.operator, note.node, note.reason].append(free[note.labels])
    found = []
    for (operator, node, reason), labels in notes.items():
        held = np.zeros(len(free), dtype=bool)
        held[np.concatenate(labels)] = True
        held[PINNED] = False
        tensors = [tensor for (tensor, _), ids in ledger.slots.items() if held[free[ids]].any()]
        found.append(Pinned(operator, node, reason, int(held.sum()), tuple(dict.fromkeys(tensors))))
    return tuple(found)
