"""Where the units of a network are read: the edges of its graph at which they are mixed with others.

A unit is carried along by everything that works on each channel for itself (batch norm, ReLU, a residual sum, a
pooling) and read where channels are mixed: by a convolution, a linear layer, the product of queries and keys. What
a unit is worth to the network is what it says to its readers, and a unit whose value is replaced at every reader,
by zero, its mean or anything else, is ablated: replaced by zero it is removed exactly.

reads = find_reads(groups)
outputs = ReadingRun(network, listener).run(x)      # listener(read, value) -> what the reader is given instead

What takes a mean over channels and carries them on (a layer norm) is no reader: under ablation its statistics stay
those of all channels, where surgery takes them over those that remain.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from workers.graph.groups import Groups
from workers.graph.labels import LabelArray
from workers.graph.layer_graph import LayerGraph
from workers.graph.sites import Site, site_of
from workers.graph.tensor_meta import TensorMeta


@dataclass(frozen=True, eq=False)
class Read:
    """One reader of the units of one group: `indices[unit]` along `axis` of what `source` gives to `reader`."""

    group: str
    source: fx.Node
    reader: fx.Node
    axis: int
    indices: LabelArray  # (units, indices of a unit); a unit that does not come by here has -1
    again: bool  # the same reader reads the same units of an earlier source too, and multiplies the two

    @property
    def present(self) -> LabelArray:
        """The units that come by here, ascending."""
        return np.flatnonzero(self.indices[:, 0] >= 0)

    def taken(self, value: Tensor, units: LabelArray | None = None) -> Tensor:
        """The channels of `units` (all that are present by default) out of a value: (units, width, …other axes)."""
        chosen = self.indices[self.present if units is None else units]
        flat = torch.from_numpy(chosen.reshape(-1)).to(value.device)
        parts = value.movedim(self.axis, 0).index_select(0, flat)
        return parts.reshape(*chosen.shape, *parts.shape[1:])


# (read, value) -> what its reader is given instead, of the same shape.
Listener = Callable[[Read, Tensor], Tensor]


def find_reads(groups: Groups) -> Mapping[str, tuple[Read, ...]]:
    """For each group the edges at which its units are read, in the order of the graph."""
    found: dict[str, list[Read]] = {name: [] for name in groups}
    values = groups.reading.values
    for source in groups.reading.network.graph.nodes:
        labels = values.get(source)
        if not isinstance(labels, np.ndarray):
            continue
        for name, units in groups.units.items():
            roots = groups.roots[name]
            if not np.isin(roots[labels], units).any():
                continue
            axis, indices = places(roots[labels], units)
            for reader in source.users:
                mixed = axis in summed_axes(site_of(reader, groups.reading), source)
                if is_tensor(reader) and (mixed or not carries(values.get(reader), roots, units)):
                    again = any(other.reader is reader for other in found[name])
                    found[name].append(Read(name, source, reader, axis, indices, again))
    order = {node: place for place, node in enumerate(groups.reading.network.graph.nodes)}
    return {name: tuple(sorted(edges, key=lambda edge: order[edge.reader])) for name, edges in found.items()}


def summed_axes(site: Site, source: fx.Node) -> set[int]:
    """The axes of `source` over which a call of a layer or an operator is known to sum.

    Its result may carry the same units all the same: those of its own output, which a residual sum ties to them.
    """
    name, shape = site.operator, site.shape(source)
    arguments = [argument for argument in site.arguments.values() if argument is source]
    if not arguments:
        return set()
    if name.startswith("conv") and site.arguments.get("groups") == 1:
        spatial = len(site.result_shape) - 2
        return {len(shape) - 1 - spatial}
    if name == "linear":
        return {len(shape) - 1}
    if name in ("matmul", "mm", "bmm", "addmm", "baddbmm"):
        left, right = site.tensors[-2:]
        return {axis for side, axis in ((left, len(shape) - 1), (right, len(shape) - 2)) if side is source}
    if "scaled_dot_product" in name:
        scored = site.arguments["query"] is source or site.arguments["key"] is source
        return {len(shape) - 1} if scored else set()
    return set()


def is_tensor(node: fx.Node) -> bool:
    """Whether a node gives a tensor, or several; the network's output and sizes are neither."""
    return node.op != "output" and isinstance(node.meta.get("val"), (TensorMeta, tuple))


def carries(value: object, roots: LabelArray, units: LabelArray) -> bool:
    """Whether any of the units is still there in a value with these labels."""
    parts = value if isinstance(value, list) else [value]
    return any(isinstance(part, np.ndarray) and bool(np.isin(roots[part], units).any()) for part in parts)


def places(roots: LabelArray, units: LabelArray) -> tuple[int, LabelArray]:
    """The axis along which the units lie, and where each does: (units, width)."""
    unit_of = np.full(max(int(roots.max()), int(units.max())) + 1, -1)
    unit_of[units] = np.arange(len(units))
    unit = unit_of[roots]
    axes = [axis for axis, size in enumerate(unit.shape) if size > 1 and (unit != unit.take([0], axis)).any()]
    assert len(axes) == 1, "the units of one group lie along one axis"  # noqa: S101  what is left is a rectangle
    along = np.moveaxis(unit, axes[0], 0).reshape(unit.shape[axes[0]], -1)[:, 0]
    order = np.argsort(along, kind="stable")[int((along < 0).sum()) :]
    present, counts = np.unique(along[along >= 0], return_counts=True)
    indices = np.full((len(units), int(counts[0])), -1)
    indices[present] = order.reshape(len(present), -1)
    return axes[0], indices


class ReadingRun(fx.Interpreter):
    """Computes a network, and lets a listener give readers something else than what their sources gave.

    The listener gets every read edge once, in the order of the graph, with the value that its reader would be given
    (as other listeners' replacements at the same edge left it), and returns a tensor of the same shape.
    """

    def __init__(self, network: LayerGraph, reads: Mapping[str, tuple[Read, ...]], listener: Listener) -> None:
        super().__init__(network)
        self.listener = listener
        self.edges: dict[fx.Node, dict[fx.Node, list[Read]]] = {}
        for edges in reads.values():
            for edge in edges:
                self.edges.setdefault(edge.reader, {}).setdefault(edge.source, []).append(edge)

    def run_node(self, n: fx.Node) -> Any:
        edges = self.edges.get(n)
        if edges is None:
            return super().run_node(n)
        given = {source: self.env[source] for source in edges}
        try:
            for source, reads in edges.items():
                for read in reads:
                    self.env[source] = self.listener(read, self.env[source])
            return super().run_node(n)
        finally:
            self.env.update(given)

    def outputs(self, *inputs: Tensor) -> Tensor:
        """The network's first output, its logits: (B, K)."""
        result = self.run(*inputs)
        outputs: Tensor = result[0] if isinstance(result, (tuple, list)) else result
        return outputs
