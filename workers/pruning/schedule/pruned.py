"""A pruned network: its teacher, which of the teacher's units are gone, and the weights that it has now.

Units are always named by the teacher's groups, however much is gone: what a step removes, what a checkpoint holds
and what a report says speak of the same units. The network itself is cut anew from the teacher at every removal, so
that it has the structure that surgery gives, and takes over the weights of the network before, so that whatever
repaired them is carried on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workers.graph.groups import Groups, find_groups
from workers.graph.labels import LabelArray
from workers.graph.layer_graph import LayerGraph
from workers.graph.ledger import Slot
from workers.graph.surgery import remove
from workers.graph.unit_cost import Kept, Size
from workers.pruning.schedule.account import Selection


@dataclass(frozen=True, eq=False)
class Pruned:
    """A network without some units of its teacher's groups; `network` is its own, and may be repaired in place."""

    teacher: LayerGraph
    origin: Groups  # of the teacher
    gone: Mapping[str, tuple[int, ...]]  # ascending; groups that lost nothing are left out
    network: LayerGraph

    @classmethod
    def whole(cls, teacher: LayerGraph, groups: Groups) -> "Pruned":
        """A copy of the teacher, of which nothing is gone."""
        return cls(teacher, groups, {}, remove(teacher, {}, groups))

    def without(self, selection: Selection) -> "Pruned":
        """The network without further units of the teacher, its weights those of this network as they are now.

        Raises `ValueError` for a group or unit that the teacher does not have, and where nothing would be left.
        """
        gone = joined(self.gone, selection)
        network = remove(self.teacher, gone, self.origin)
        carry_weights(self.network, network, self.origin.reading.ledger.slots, self.kept, self.origin.kept(gone))
        return Pruned(self.teacher, self.origin, gone, network)

    @cached_property
    def kept(self) -> Kept:
        """For every label of the teacher, whether it stays."""
        return self.origin.kept(self.gone)

    @cached_property
    def size(self) -> Size:
        """Parameters and MACs of what surgery leaves, exactly."""
        return self.origin.size_without(self.gone)

    @cached_property
    def groups(self) -> Groups:
        """The network's own groups, by their own names and numbers; see correspondence.py for the teacher's."""
        return find_groups(self.network)

    def num_left(self, group: str) -> int:
        """How many units are left of a group of the teacher."""
        return self.origin[group].num_units - len(self.gone.get(group, ()))

    def copy(self) -> "Pruned":
        """The same with weights of its own, laid out in memory as in a network that was just cut or rebuilt."""
        return self.without({})

    def state(self) -> dict[str, Any]:
        """What it takes to rebuild the network from its teacher, bit for bit: plain data, and tensors on the CPU.

        The tensors may be the network's own: they are to be written before it changes.
        """
        tensors = {name: tensor.detach().cpu() for name, tensor in tensors_of(self.network)}
        return {"gone": {name: list(units) for name, units in self.gone.items()}, "tensors": tensors}

    @classmethod
    def from_state(cls, teacher: LayerGraph, groups: Groups, state: Mapping[str, Any]) -> "Pruned":
        """The network that `state` was taken from."""
        gone = joined({}, state["gone"])
        network = remove(teacher, gone, groups)
        fill(network, state["tensors"])
        return cls(teacher, groups, gone, network)


def joined(gone: Selection, further: Selection) -> dict[str, tuple[int, ...]]:
    """The units of both."""
    both = {name: {*gone.get(name, ()), *further.get(name, ())} for name in [*gone, *further]}
    return {name: tuple(sorted(units)) for name, units in both.items() if units}


def tensors_of(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer once, by its first name."""
    yield from network.named_parameters()
    yield from network.named_buffers()


def carry_weights(
    source: LayerGraph, target: LayerGraph, slots: Mapping[Slot, LabelArray], before: Kept, after: Kept
) -> None:
    """Write into `target` what it keeps of the tensors of `source`; by the labels that each of them has left."""
    stays: dict[str, dict[int, Tensor]] = {}
    for (name, axis), labels in slots.items():
        still = after[labels[before[labels]]]
        if not still.all():
            stays.setdefault(name, {})[axis] = torch.from_numpy(np.flatnonzero(still))
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors_of(source):
        value = tensor.detach()
        for axis, indices in stays.get(name, {}).items():
            value = value.index_select(axis, indices.to(value.device))
        kept[name] = value
    fill(target, kept)


def fill(network: LayerGraph, values: Mapping[str, Tensor]) -> None:
    """Give every parameter and buffer of `network` its value from `values`, by name."""
    with torch.no_grad():
        for name, tensor in tensors_of(network):
            tensor.copy_(values[name])
