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

from workers.graph.components import Components
from workers.graph.cost import graph_cost
from workers.graph.footprints import CHANNELS, HEADS, WIDTH, Footprint, candidates
from workers.graph.labels import PINNED, LabelArray, varying
from workers.graph.layer_graph import LayerGraph
from workers.graph.ledger import Ledger
from workers.graph.rectangles import equal_labels, resolve
from workers.graph.rules import read_network
from workers.graph.sites import Reading
from workers.graph.tensor_meta import TensorMeta
from workers.graph.unit_cost import CostModel, Kept, Size, cost_model

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

    def masks(self, selection: Mapping[str, Sequence[int]]) -> dict[str, Kept]:
        """Node -> where its value stays when the selected units go; True where it stays, and broadcastable to it.

        For setting units to zero without surgery. Nodes are left out in which nothing goes, and those in which
        channels are mixed with an axis that is dynamic, such as (batch x heads, width): what flows into them is zero.
        """
        kept = self.kept(selection)
        found = {}
        for node, labels in self.reading.values.items():
            meta = node.meta.get("val")
            if isinstance(labels, np.ndarray) and isinstance(meta, TensorMeta):
                static = all(isinstance(meta.shape[axis], int) for axis in varying(labels))
                if static and not kept[labels].all():
                    found[node.name] = kept[labels]
        return found


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
    saved = cost.saved(dict(zip(footprint.arrays, footprint.counts, strict=True)))
    statistics = [node for node, labels in ledger.statistics if (roots[labels] == footprint.units[0]).any()]
    return Group(
        name=name,
        kind=kind,
        num_units=len(footprint.units),
        members=members,
        parameters_per_unit=saved.parameters,
        macs_per_unit=saved.macs,
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
