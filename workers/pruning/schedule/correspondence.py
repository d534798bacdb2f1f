"""Which unit of the teacher each unit of a pruned network is.

A criterion judges a network by the network's own groups. Their names and numbers shift as units go, and a group of
which one unit is left is a group no more. What does not shift are the labels: every index that is left of a tensor
has a label of the teacher. A unit of the pruned network is that unit of the teacher which has exactly the indices
that it has; where a unit is none (the network without its other half may be divided more finely) nothing is said
of it.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.graph.footprints import WIDTH
from workers.graph.groups import Groups
from workers.graph.labels import LabelArray
from workers.pruning.schedule.pruned import Pruned
from workers.pruning.scores import Scores

NONE = -1


def origins(pruned: Pruned) -> Mapping[str, tuple[tuple[str, int] | None, ...]]:
    """For each group of the network, what each unit is among the teacher's: (group, unit), or None."""
    now, then = paired_labels(pruned)
    tables = [Owners(pruned.origin, width=width, labels=then) for width in (False, True)]
    names = list(pruned.origin)
    found: dict[str, tuple[tuple[str, int] | None, ...]] = {}
    for name, group in pruned.groups.items():
        unit = units_of(pruned.groups, name)[now]
        own = np.full(group.num_units, NONE)
        groups = np.full(group.num_units, NONE)
        for table in tables[::-1] if group.kind == WIDTH else tables:
            owner_group, owner_unit = table.match(unit, group.num_units)
            fresh = (own == NONE) & (owner_unit != NONE)
            own[fresh], groups[fresh] = owner_unit[fresh], owner_group[fresh]
        found[name] = tuple(
            (names[place], number) if number != NONE else None
            for place, number in zip(groups.tolist(), own.tolist(), strict=True)
        )
    return found


def paired_labels(pruned: Pruned) -> tuple[LabelArray, LabelArray]:
    """The labels of every index that is left of every tensor: the network's own, and the teacher's."""
    slots = pruned.groups.reading.ledger.slots
    pairs = [
        (slots[slot], labels[pruned.kept[labels]])
        for slot, labels in pruned.origin.reading.ledger.slots.items()
        if slot in slots
    ]
    now, then = ([pair[side] for pair in pairs] for side in (0, 1))
    return np.concatenate(now), np.concatenate(then)


def units_of(groups: Groups, name: str) -> LabelArray:
    """For every label the unit of the group that it belongs to; NONE where it belongs to none."""
    roots = groups.roots[name]
    unit_of_root = np.full(len(roots), NONE)
    unit_of_root[groups.units[name]] = np.arange(len(groups.units[name]))
    return unit_of_root[roots]


class Owners:
    """For every index that is left, which unit of the teacher it belongs to, in one of the two partitions."""

    def __init__(self, groups: Groups, *, width: bool, labels: LabelArray) -> None:
        self.group = np.full(len(labels), NONE)
        self.unit = np.full(len(labels), NONE)
        self.most = 1 + max((group.num_units for group in groups.values()), default=0)
        for place, (name, group) in enumerate(groups.items()):
            if (group.kind == WIDTH) == width:
                units = units_of(groups, name)[labels]
                self.group[units != NONE], self.unit[units != NONE] = place, units[units != NONE]
        self.owner = np.where(self.unit == NONE, NONE, self.group * self.most + self.unit)
        self.sizes = np.bincount(self.owner[self.owner != NONE], minlength=1)

    def match(self, unit: LabelArray, num_units: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each of a group's units the teacher's unit of exactly the same indices, as (group, unit), or NONE."""
        here = unit != NONE
        low, high = np.full(num_units, np.iinfo(np.int64).max), np.full(num_units, NONE)
        np.minimum.at(low, unit[here], self.owner[here])
        np.maximum.at(high, unit[here], self.owner[here])
        size = np.bincount(unit[here], minlength=num_units)
        same = (low == high) & (high != NONE)
        same[same] = self.sizes[high[same]] == size[same]
        return np.where(same, high // self.most, NONE), np.where(same, high % self.most, NONE)


def by_the_teacher(scores: Scores, pruned: Pruned) -> Scores:
    """Scores of the network's units as scores of the teacher's; NaN for what is gone, or was not judged."""
    values = {name: unknown(group.num_units) for name, group in pruned.origin.items()}
    errors = {name: unknown(group.num_units) for name, group in pruned.origin.items()} if scores.errors else {}
    for name, units in origins(pruned).items():
        for place, origin in enumerate(units):
            if origin is not None and name in scores.values:
                values[origin[0]][origin[1]] = scores.values[name][place]
                if name in scores.errors:
                    errors[origin[0]][origin[1]] = scores.errors[name][place]
    return Scores(values, errors, scores.examples, scores.comparable, scores.notes)


def unknown(units: int) -> Tensor:
    """As many NaNs, float64."""
    return torch.full((units,), torch.nan, dtype=torch.float64)
