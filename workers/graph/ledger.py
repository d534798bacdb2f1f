"""The ledger: everything that the operators of a network say about labels.

Four kinds of statement:

    equality    these two labels are one unit (the channels of both sides of an addition)
    pin         this label is never removed, and this operator is why
    rectangle   what is removed of this array must leave a rectangle (heads x width of a head); an axis may
                have owners: index i of the axis goes exactly when the owner's label i goes
    product     the multiply-accumulates of a node are proportional to the kept labels of these arrays

The labels of a parameter stand per axis, in slots: a convolution's weight has one label for each output channel
and one for each input channel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from workers.graph.labels import PINNED, LabelArray, Labels, varying

Slot = tuple[str, int]  # a tensor's name, and one of its axes


@dataclass(frozen=True)
class Rectangle:
    """An array of which only whole rows or whole columns may go.

    `heads` is the axis of an attention's heads where there is one.
    """

    labels: LabelArray
    owners: Mapping[int, LabelArray] = field(default_factory=dict)
    heads: int | None = None


@dataclass(frozen=True)
class PinNote:
    """Labels that an operator pins, and why."""

    node: str
    operator: str
    reason: str
    labels: LabelArray


@dataclass(frozen=True)
class Product:
    """A product of matrices in a node: its MACs are `size` x the kept share of each factor."""

    node: str
    size: int
    factors: tuple[LabelArray, ...]


@dataclass
class Ledger:
    """Statements as they are made, while a network is read."""

    num_labels: int = 1  # the first is PINNED
    slots: dict[Slot, LabelArray] = field(default_factory=dict)
    equalities: list[tuple[LabelArray, LabelArray]] = field(default_factory=list)
    rectangles: list[Rectangle] = field(default_factory=list)
    pins: list[PinNote] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    statistics: list[tuple[str, LabelArray]] = field(default_factory=list)  # node, what it takes a mean over

    def fresh(self, count: int) -> LabelArray:
        """`count` labels that nothing has said anything about."""
        self.num_labels += count
        return np.arange(self.num_labels - count, self.num_labels)

    def slot(self, name: str, axis: int, size: int) -> LabelArray:
        """The labels of one axis of a held tensor; an axis of one index cannot lose it."""
        if (name, axis) not in self.slots:
            self.slots[name, axis] = self.fresh(size) if size > 1 else np.full(size, PINNED)
        return self.slots[name, axis]

    def equate(self, left: LabelArray, right: LabelArray) -> None:
        self.equalities.append((left, right))

    def tie(self, labels: LabelArray, axis: int, owner: LabelArray) -> None:
        """Index i of `axis`, on which `labels` varies, goes exactly when `owner[i]` goes."""
        if varying(labels) == (axis,):
            self.equate(labels.reshape(-1), owner)
        else:
            self.rectangles.append(Rectangle(labels, {axis: owner}))

    def note_result(self, labels: Labels) -> None:
        """A tensor exists with these labels; what is removed of it must leave a rectangle."""
        if labels is not None and len(varying(labels)) > 1:
            self.rectangles.append(Rectangle(labels))
