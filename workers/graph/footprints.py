"""Footprints: units that stand in the same arrays equally often are alike, and make one group.

There are two partitions of labels into units (rectangles.py): one in which an attention loses whole heads, and one in
which it loses width inside them. Outside attention they agree; inside, both give groups.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.graph.components import Components
from workers.graph.labels import PINNED, LabelArray
from workers.graph.ledger import Ledger
from workers.graph.rectangles import resolve
from workers.graph.unit_cost import CostModel

CHANNELS, HEADS, WIDTH = "channels", "heads", "head width"


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
