"""Exact ablation, word for word: for every unit one full forward pass, in which every reader of its group is given

    x_U − r_U, both of the network as it is, in place of the unit's channels,

and all other channels as the ablated network computes them.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from workers.graph.layer_graph import LayerGraph
from workers.pruning.reads import Read, ReadingRun
from workers.pruning.replacement import Replacement


def ablated(
    network: LayerGraph, edges: Sequence[Read], replacement: Replacement, units: Iterable[int], x: Tensor
) -> Tensor:
    """The logits without each of `units`: (units, B, K)."""
    group = {edges[0].group: tuple(edges)}
    original: dict[Read, Tensor] = {}

    def remember(read: Read, value: Tensor) -> Tensor:
        original[read] = value
        return value

    with torch.no_grad():
        ReadingRun(network, group, remember).run(x)
        return torch.stack([without(network, group, replacement, original, unit, x) for unit in units])


def without(
    network: LayerGraph,
    group: dict[str, tuple[Read, ...]],
    replacement: Replacement,
    original: dict[Read, Tensor],
    unit: int,
    x: Tensor,
) -> Tensor:
    """The logits without one unit: (B, K)."""

    def replace(read: Read, value: Tensor) -> Tensor:
        if unit not in read.present:
            return value
        place = list(read.present).index(unit)
        kept = (read.taken(original[read]) - replacement.removed(read, original[read]))[place]
        changed = value.clone().movedim(read.axis, 0)
        for index, channel in zip(read.indices[unit], kept, strict=True):
            changed[int(index)] = channel
        return changed.movedim(0, read.axis)

    return ReadingRun(network, group, replace).outputs(x)
