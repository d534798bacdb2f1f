"""Connected components of labels: which labels are one unit.

Equalities are edges between labels. Roots are found by hooking: every round, each edge between two components
hangs the larger root under the smaller, and paths are shortened until all labels point at their roots. Each
round at least halves what is unsettled in practice, and all of it is whole-array work.
"""

import numpy as np

from workers.graph.labels import LabelArray


class Components:
    """A partition of the labels 0 .. count - 1; the root of a component is its smallest label."""

    def __init__(self, count: int) -> None:
        self.roots = np.arange(count)

    def copy(self) -> "Components":
        copied = Components(0)
        copied.roots = self.roots.copy()
        return copied

    def connect(self, left: LabelArray, right: LabelArray) -> None:
        """Make one component of each pair; both are broadcast to one shape."""
        left, right = (side.reshape(-1) for side in np.broadcast_arrays(left, right))
        while True:
            low, high = np.minimum(self.roots[left], self.roots[right]), np.maximum(self.roots[left], self.roots[right])
            open_edges = low != high
            if not open_edges.any():
                return
            left, right = low[open_edges], high[open_edges]
            np.minimum.at(self.roots, right, left)
            self.shorten()

    def shorten(self) -> None:
        """Let every label point at its root."""
        while True:
            further = self.roots[self.roots]
            if np.array_equal(further, self.roots):
                return
            self.roots = further
