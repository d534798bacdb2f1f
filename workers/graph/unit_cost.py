"""What is left of a network's parameters and multiply-accumulates when labels go, without doing the surgery.

A tensor keeps the product of what its axes keep. A matrix product keeps the product of what its factors keep: a
dense layer costs its inputs x its outputs, attention its heads x their width. Both counts are exact; a test compares
them with the network after surgery.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

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
        parameters = sum(
            math.prod(left[array[axis]] if axis in array else size for axis, size in enumerate(shape))
            for shape, array in self.tensors
        )
        whole = [labels.size for labels in self.arrays]
        changed = {array for array, count in enumerate(left) if count != whole[array]}
        macs = 0
        for count, parts in self.products:
            if any(array in changed for _, arrays in parts for array in arrays):
                kept = (
                    math.prod((Fraction(left[a], whole[a]) for a in arrays), start=share) for share, arrays in parts
                )
                macs += int(count * sum(kept))
            else:
                macs += count
        return Size(parameters, macs)


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
