"""What a removal leaves of every value in the graph: which indices, and so which sizes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import fx

from workers.graph.labels import LabelArray, Shape
from workers.graph.ledger import Slot
from workers.graph.sites import Held, Site, Value
from workers.graph.unit_cost import Kept


@dataclass(frozen=True)
class Survivors:
    """The labels that stay, and by them what stays of tensors."""

    kept: Kept
    slots: Mapping[Slot, LabelArray]
    values: Mapping[fx.Node, Value]

    def indices(self, site: Site, value: object, axis: int) -> NDArray[np.bool_] | None:
        """For each index along an axis of an argument whether it stays; None where the axis is fixed."""
        if isinstance(value, Held):
            own = value.axes[axis]
            labels = self.slots.get((value.name, own)) if own is not None else None
            return None if labels is None else np.take(self.kept, labels)
        known = self.values.get(value) if isinstance(value, fx.Node) else None
        if isinstance(known, Held):
            return self.indices(site, known, axis)
        return self.along(known, axis) if isinstance(known, np.ndarray) else None

    def along(self, labels: LabelArray, axis: int) -> NDArray[np.bool_] | None:
        """For each index along an axis whether it stays; what stays is a rectangle."""
        if labels.shape[axis] == 1:
            return None
        stays = np.take(self.kept, labels)
        rows = [np.moveaxis(stays, one, 0).reshape(size, -1) for one, size in enumerate(stays.shape)]
        sides: list[NDArray[np.bool_]] = [np.asarray(row.any(1)) for row in rows]
        area = int(np.prod([side.sum() for side in sides]))
        assert area == stays.sum(), "what is left of a tensor is a rectangle"  # noqa: S101  an invariant of groups
        return sides[axis]

    def shape(self, site: Site, value: object) -> Shape:
        """The shape of an argument, or of the site's own result, after the removal."""
        return tuple(self.size(site, value, axis, size) for axis, size in enumerate(site.shape(value)))

    def size(self, site: Site, value: object, axis: int, before: int) -> int:
        """The size of one axis after the removal."""
        stays = self.indices(site, value, axis)
        return before if stays is None else int(stays.sum())
