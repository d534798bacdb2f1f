"""What a removal leaves of the teacher's values, looked up by the names of nodes."""

import numpy as np
import torch
from torch import Tensor

from workers.graph.groups import Groups
from workers.graph.survivors import Survivors
from workers.graph.unit_cost import Kept


class Remaining:
    """Of every value of the teacher, which indices the pruned network still has."""

    def __init__(self, groups: Groups, kept: Kept) -> None:
        reading = groups.reading
        self.survivors = Survivors(kept, reading.ledger.slots, reading.values)
        self.labels = {node.name: value for node, value in reading.values.items() if isinstance(value, np.ndarray)}

    def along(self, node: str, axis: int, size: int) -> Tensor:
        """For each of the `size` indices along an axis of what a node gives, whether it stays: (size,) bool."""
        labels = self.labels.get(node)
        stays = None if labels is None else self.survivors.along(labels, axis % labels.ndim)
        return torch.ones(size, dtype=torch.bool) if stays is None else torch.from_numpy(stays)

    def of(self, value: Tensor, node: str) -> Tensor:
        """What stays of `value`, which the teacher's node gives."""
        for axis, size in enumerate(value.shape) if node in self.labels else ():
            stays = self.along(node, axis, size)
            if not stays.all():
                value = value.index_select(axis, stays.nonzero()[:, 0].to(value.device))
        return value
