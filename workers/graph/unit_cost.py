"""What is left of a network's parameters and multiply-accumulates when labels go, without doing the surgery.

A tensor keeps the product of what its axes keep. A matrix product keeps the product of what its factors keep: a
dense layer costs its inputs x its outputs, attention its heads x their width. Both counts are exact; a test compares
them with the network after surgery.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from workers.graph.labels import LabelArray
from workers.graph.layer_graph import LayerGraph
from workers.graph.ledger import Ledger

Kept = NDArray[np.bool_]  # for every label, whether it stays


@dataclass(frozen=True)
class Size:
    """Parameters, and MACs of one example."""

    parameters: int
    macs: int


@dataclass(frozen=True)
class CostModel:
    """What the size of a network depends on: how much is left of each of some label arrays.

    The arrays are the slots of the ledger in order, then the factors of its products that are no slots.
    """

    arrays: Sequence[LabelArray]
    tensors: Sequence[tuple[tuple[int, ...], Mapping[int, int]]]  # a parameter's shape, and the array of each axis
    products: Sequence[tuple[int, Sequence[tuple[Fraction, Sequence[int]]]]]  # MACs, and their parts: share, arrays

    def left_by(self, kept: Kept) -> list[int]:
        """How many labels of each array are among the kept."""
        return [int(kept[labels].sum()) for labels in self.arrays]

    def size(self, left: Sequence[int]) -> Size:
        """The size of the network when that many labels of each array are left."""
        return self._size(left, range(len(self.tensors)), range(len(self.products)))

    def saved(self, gone: Mapping[int, int]) -> Size:
        """What the whole network saves when it loses that many labels of some arrays; only what has them is counted."""
        tensors = sorted({place for array in gone for place in self._tensors_on[array]})
        products = sorted({place for array in gone for place in self._products_on[array]})
        left = [count - gone.get(array, 0) for array, count in enumerate(self._whole)]
        before, after = (self._size(counts, tensors, products) for counts in (self._whole, left))
        return Size(before.parameters - after.parameters, before.macs - after.macs)

    @cached_property
    def _whole(self) -> list[int]:
        return [labels.size for labels in self.arrays]

    @cached_property
    def _tensors_on(self) -> Mapping[int, list[int]]:
        return places_of([array.values() for _, array in self.tensors])

    @cached_property
    def _products_on(self) -> Mapping[int, list[int]]:
        return places_of([[a for _, arrays in parts for a in arrays] for _, parts in self.products])

    def _size(self, left: Sequence[int], tensors: Iterable[int], products: Iterable[int]) -> Size:
        parameters = 0
        for place in tensors:
            shape, array = self.tensors[place]
            parameters += math.prod(left[array[axis]] if axis in array else size for axis, size in enumerate(shape))
        whole, macs = self._whole, 0
        for place in products:
            count, parts = self.products[place]
            if any(left[array] != whole[array] for _, arrays in parts for array in arrays):
                kept = (
                    math.prod((Fraction(left[a], whole[a]) for a in arrays), start=share) for share, arrays in parts
                )
                macs += int(count * sum(kept))
            else:
                macs += count
        return Size(parameters, macs)


def places_of(holders: Iterable[Iterable[int]]) -> Mapping[int, list[int]]:
    """For each array the places of those that depend on it."""
    found: dict[int, list[int]] = defaultdict(list)
    for place, arrays in enumerate(holders):
        for array in set(arrays):
            found[array].append(place)
    return found


def cost_model(ledger: Ledger, network: LayerGraph, macs: Mapping[str, int]) -> CostModel:
    """The cost model of a network whose nodes have these MACs."""
    arrays = list(ledger.slots.values())
    places = {id(labels): place for place, labels in enumerate(arrays)}
    parts: dict[str, list[tuple[int, list[int]]]] = defaultdict(list)
    for product in ledger.products:
        for labels in product.factors:
            if id(labels) not in places:
                places[id(labels)] = len(arrays)
                arrays.append(labels)
        parts[product.node].append((product.size, [places[id(labels)] for labels in product.factors]))
    axes: dict[str, dict[int, int]] = defaultdict(dict)
    for place, (name, axis) in enumerate(ledger.slots):
        axes[name][axis] = place
    tensors = [(tuple(parameter.shape), axes[name]) for name, parameter in network.named_parameters()]
    return CostModel(arrays, tensors, [(count, shares(parts[node])) for node, count in macs.items()])


def shares(parts: Sequence[tuple[int, list[int]]]) -> list[tuple[Fraction, list[int]]]:
    """The products of a node by their share in its cost; a node without any costs what it costs."""
    total = sum(size for size, _ in parts)
    return [(Fraction(size, total), arrays) for size, arrays in parts] if total else [(Fraction(1), [])]
