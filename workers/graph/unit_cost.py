"""What is left of a network's parameters and multiply-accumulates when labels go, without doing the surgery.

A tensor keeps the product of what its axes keep. A matrix product keeps the product of what its factors keep: a
dense layer costs its inputs x its outputs, attention its heads x their width. Both counts are exact; a test compares
them with the network after surgery.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from workers.graph.layer_graph import LayerGraph
from workers.graph.ledger import Ledger, Product

Kept = NDArray[np.bool_]  # for every label, whether it stays


@dataclass(frozen=True)
class Size:
    """Parameters, and MACs of one example."""

    parameters: int
    macs: int


@dataclass(frozen=True)
class CostModel:
    """What the sizes of a network depend on."""

    ledger: Ledger
    shapes: Mapping[str, tuple[int, ...]]  # parameters by name, shared ones once
    macs: Mapping[str, int]  # node -> MACs of one example

    def remaining(self, kept: Kept) -> Size:
        """The size of the network when only the labels of `kept` stay."""
        return Size(self.remaining_parameters(kept), self.remaining_macs(kept))

    def remaining_parameters(self, kept: Kept) -> int:
        axes: dict[str, dict[int, int]] = defaultdict(dict)
        for (name, axis), labels in self.ledger.slots.items():
            axes[name][axis] = int(kept[labels].sum())
        return sum(
            math.prod(axes[name].get(axis, size) for axis, size in enumerate(shape))
            for name, shape in self.shapes.items()
        )

    def remaining_macs(self, kept: Kept) -> int:
        by_node: dict[str, list[Product]] = defaultdict(list)
        for product in self.ledger.products:
            by_node[product.node].append(product)
        return sum(int(macs * share(by_node[node], kept)) for node, macs in self.macs.items())


def share(products: list[Product], kept: Kept) -> Fraction:
    """The part of a node's MACs that stays."""
    total = sum(product.size for product in products)
    if not total:
        return Fraction(1)
    return sum((Fraction(product.size, total) * kept_share(product, kept) for product in products), Fraction(0))


def kept_share(product: Product, kept: Kept) -> Fraction:
    """The part of one product that stays."""
    return math.prod(
        (Fraction(int(kept[labels].sum()), labels.size) for labels in product.factors), start=Fraction(1)
    )


def parameter_shapes(network: LayerGraph) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter under its first name."""
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
