"""Dependency groups by their definitions, word for word.

A component of labels is what can be reached by equalities. Removing units means setting them to zero wherever they
appear: here the original network runs at its full size, every tensor's removed indices are overwritten by zeros, and
what takes a mean over channels (layer norm, RMS norm, mean, variance) is written out over those that remain.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from workers.graph.groups import Groups
from workers.graph.layer_graph import LayerGraph


def components(num_labels: int, equalities: Iterable[tuple[int, int]]) -> list[set[int]]:
    """Sets of labels that are reachable from each other, by walking from neighbour to neighbour."""
    neighbours: dict[int, set[int]] = defaultdict(set)
    for left, right in equalities:
        neighbours[left].add(right)
        neighbours[right].add(left)
    found: list[set[int]] = []
    seen: set[int] = set()
    for label in range(num_labels):
        if label not in seen:
            component, frontier = {label}, [label]
            while frontier:
                for neighbour in neighbours[frontier.pop()] - component:
                    component.add(neighbour)
                    frontier.append(neighbour)
            found.append(component)
            seen |= component
    return found


def is_rectangle(gone: np.ndarray) -> bool:
    """Whether what is left of a tensor is all places whose row, column, ... is left somewhere."""
    stays = ~gone
    for place in np.ndindex(stays.shape):
        crossed = all(stays.take(index, axis).any() for axis, index in enumerate(place))
        if crossed != stays[place]:
            return False
    return True


def in_double(network: LayerGraph, seed: int = 0) -> LayerGraph:
    """`network` in float64 with drawn parameters and statistics, so that no unit is zero by its initialisation."""
    network.double()
    for node in network.graph.find_nodes(op="placeholder"):
        meta = node.meta["val"]
        if meta.dtype.is_floating_point:
            node.meta["val"] = dataclasses.replace(meta, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
        for name, buffer in network.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + 0.5)
    return network


def zeroed_outputs(
    network: LayerGraph, groups: Groups, selection: Mapping[str, Sequence[int]], inputs: Sequence[Tensor]
) -> Any:
    """What the original gives when the selected units are zero wherever they appear."""
    with torch.no_grad():
        return Zeroing(network, groups, selection).run(*inputs)


class Zeroing(fx.Interpreter):
    """Runs a network and zeroes the removed indices of every value."""

    def __init__(self, network: LayerGraph, groups: Groups, selection: Mapping[str, Sequence[int]]) -> None:
        super().__init__(network)
        self.values = groups.reading.values
        self.kept = groups.kept(selection)

    def mask(self, node: fx.Node) -> Tensor | None:
        """1 where a node's value stays, 0 where it is removed, with an axis of size 1 where that does not depend."""
        labels = self.values.get(node)
        return torch.from_numpy(self.kept[labels]) if isinstance(labels, np.ndarray) else None

    def run_node(self, n: fx.Node) -> Any:
        source = n.all_input_nodes[0] if n.all_input_nodes else None
        mask = self.mask(source) if source is not None else None
        statistic = STATISTICS.get(kind(self.submodules.get(str(n.target)), n))
        if statistic is not None and source is not None and mask is not None and not mask.all():
            x = self.env[source]
            result = statistic(self.submodules.get(str(n.target)), n, x, mask.expand_as(x).to(x.dtype))
        else:
            result = super().run_node(n)
        own = self.mask(n)
        return torch.where(own, result, torch.zeros_like(result)) if own is not None else result


def kind(module: nn.Module | None, node: fx.Node) -> str:
    return type(module).__name__ if node.op == "call_module" else str(node.target)


def mean_of_kept(x: Tensor, kept: Tensor, dims: Sequence[int]) -> Tensor:
    """Σ of what is kept / how many are kept."""
    return (x * kept).sum(list(dims), keepdim=True) / kept.sum(list(dims), keepdim=True)


def layer_norm(norm: Any, _: fx.Node, x: Tensor, kept: Tensor) -> Tensor:
    """(x - mean) / √(variance + ε) · weight + bias, over the last axes."""
    dims = range(-len(norm.normalized_shape), 0)
    mean = mean_of_kept(x, kept, dims)
    variance = mean_of_kept((x - mean) ** 2, kept, dims)
    normalized: Tensor = (x - mean) / torch.sqrt(variance + norm.eps) * norm.weight
    return normalized if norm.bias is None else normalized + norm.bias


def rms_norm(norm: Any, _: fx.Node, x: Tensor, kept: Tensor) -> Tensor:
    """x / √(mean of squares + ε) · weight."""
    dims = range(-len(norm.normalized_shape), 0)
    eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
    normalized: Tensor = x / torch.sqrt(mean_of_kept(x**2, kept, dims) + eps) * norm.weight
    return normalized


def mean(_module: Any, node: fx.Node, x: Tensor, kept: Tensor) -> Tensor:
    dims = node.args[1]
    assert isinstance(dims, (list, tuple))
    result = mean_of_kept(x, kept, [int(str(dim)) for dim in dims])
    keepdim = len(node.args) > 2 and bool(node.args[2])
    return result if keepdim else result.squeeze([int(str(dim)) for dim in dims])


def group_norm(norm: Any, _: fx.Node, x: Tensor, kept: Tensor) -> Tensor:
    """Each group of channels by its own mean and variance; a group that is gone stays zero."""
    shape = (x.shape[0], norm.num_groups, -1)
    groups, stays = x.reshape(shape), kept.reshape(shape)
    count = stays.sum(-1, keepdim=True).clamp(min=1)
    mean = (groups * stays).sum(-1, keepdim=True) / count
    variance = ((groups - mean) ** 2 * stays).sum(-1, keepdim=True) / count
    normalized = ((groups - mean) / torch.sqrt(variance + norm.eps)).reshape(x.shape)
    channel = (1, -1, *[1] * (x.dim() - 2))
    result: Tensor = normalized * norm.weight.view(channel) + norm.bias.view(channel)
    return result


STATISTICS = {
    "LayerNorm": layer_norm,
    "RMSNorm": rms_norm,
    "GroupNorm": group_norm,
    "aten.mean.dim": mean,
}
