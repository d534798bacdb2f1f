"""One full forward pass per unit: slow, and right for whatever a graph can hold.

Used where a suffix cannot be stacked, and to check a stacked one on a few examples.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from workers.graph.labels import LabelArray
from workers.graph.layer_graph import LayerGraph
from workers.pruning.observation import observed
from workers.pruning.reads import Read, ReadingRun
from workers.pruning.replacement import Replacement


def one_by_one(
    network: LayerGraph,
    reads: tuple[Read, ...],
    replacement: Replacement,
    units: LabelArray,
    x: Tensor,
) -> Iterator[Tensor]:
    """The logits (B, K) of `network`, in evaluation mode, without each of `units` in turn."""
    kept: dict[Read, Tensor] = {}

    def keep(read: Read, value: Tensor) -> Tensor:
        coming = units[read.indices[units, 0] >= 0]
        if len(coming):
            kept[read] = read.taken(value, coming) - replacement.removed(read, value, coming)
        return value

    edges = {read.group: reads for read in reads}
    with observed(network):
        ReadingRun(network, edges, keep).run(x)
    for unit in units:
        with observed(network):
            logits = ReadingRun(network, edges, replacing(int(unit), units, kept)).outputs(x)
        yield logits


def replacing(unit: int, units: LabelArray, kept: Mapping[Read, Tensor]) -> Callable[[Read, Tensor], Tensor]:
    """A listener that gives readers x − r for one unit, both of the network as it is."""

    def listen(read: Read, value: Tensor) -> Tensor:
        if read.indices[unit, 0] < 0:
            return value
        coming = units[read.indices[units, 0] >= 0]
        standing = kept[read][coming.tolist().index(unit)]
        places = torch.from_numpy(read.indices[unit]).to(value.device)
        return value.movedim(read.axis, 0).index_copy(0, places, standing).movedim(0, read.axis)

    return listen
