"""From statements to units: the partition in which every removal leaves rectangles.

Equalities alone say what must go together; they do not say how an array with labels on two axes may shrink. The
(heads, width) array of an attention could lose rows or columns. Which, is decided here, one axis for each
rectangle: all labels of an index of that axis become one unit. `heads=True` takes rows wherever an attention says
which axis its heads are on; `heads=False` takes the width inside them. Both partitions are valid, and so is
removing units of both at once: what is left of a rectangle after whole rows and whole columns is a rectangle.
"""

from collections.abc import Sequence

import numpy as np

from workers.graph.components import Components
from workers.graph.labels import PINNED, LabelArray, first_of, line, varying
from workers.graph.ledger import Ledger, Rectangle

FIXED = np.array([PINNED])


def equal_labels(ledger: Ledger) -> Components:
    """The components by equalities alone, without pins."""
    components = Components(ledger.num_labels)
    connect_all(components, ledger.equalities)
    return components


def resolve(ledger: Ledger, components: Components, *, heads: bool, pinned: bool = True) -> LabelArray:
    """The root of every label when all rectangles are settled; pinned labels have the root PINNED.

    `pinned=False` leaves the operators' pins out: which units there would be without them.
    """
    components = components.copy()
    if pinned:
        connect_all(components, [(note.labels, FIXED) for note in ledger.pins])
    for rectangle in ledger.rectangles:
        if rectangle.heads is not None:
            settle(components, rectangle, heads=heads)
    while True:
        before = components.roots.copy()
        for rectangle in ledger.rectangles:
            settle(components, rectangle, heads=heads)
        if pinned:
            pin_lonely(components, ledger)
        if np.array_equal(before, components.roots):
            return components.roots


def connect_all(components: Components, pairs: Sequence[tuple[LabelArray, LabelArray]]) -> None:
    """Connect many pairs of arrays at once."""
    sides = [np.broadcast_arrays(left, right) for left, right in pairs]
    if sides:
        left, right = (np.concatenate([pair[side].reshape(-1) for pair in sides]) for side in (0, 1))
        components.connect(left, right)


def settle(components: Components, rectangle: Rectangle, *, heads: bool) -> None:
    """Let one axis of the rectangle keep its labels, and its owners follow."""
    roots = components.roots[rectangle.labels]
    axes = [axis for axis in varying(roots) if (roots != roots.take([0], axis)).any()]
    kept = choose(components, rectangle, axes, heads=heads)
    others = [axis for axis in axes if axis != kept]
    if others:
        components.connect(roots, first_of(roots, others))
    if kept is None:
        components.connect(roots, FIXED)  # one unit, or none, for the whole tensor
    for axis, owner in rectangle.owners.items():
        components.connect(owner, FIXED if axis != kept else line(rectangle.labels, axis))


def choose(components: Components, rectangle: Rectangle, axes: Sequence[int], *, heads: bool) -> int | None:
    """The axis along which indices may go: never one whose owners are all pinned; the longest, unless heads say."""
    fixed = [axis for axis, owner in rectangle.owners.items() if (components.roots[owner] == PINNED).all()]
    free = [axis for axis in axes if axis not in fixed]
    if rectangle.heads in free and heads:
        return rectangle.heads
    inner = [axis for axis in free if axis != rectangle.heads] or free
    return max(inner, key=lambda axis: rectangle.labels.shape[axis], default=None)


def pin_lonely(components: Components, ledger: Ledger) -> None:
    """A unit that is all of a tensor's axis cannot go: nothing would be left."""
    for labels in ledger.slots.values():
        roots = components.roots[labels]
        if roots.size and roots[0] != PINNED and (roots == roots[0]).all():
            components.connect(roots[:1], FIXED)
