"""Many ablated networks in one batch: where examples lie in every value, and rows of chosen examples.

Rows (unit, example) are computed as one batch of that many examples, which begins with copies of the rows of a batch
that ran before. A value may have its examples along any axis, and may have merged that axis with others: (examples ·
heads, tokens) or (tokens · examples, channels). The symbolic size says which axis it is; which of the two orders it
is, a few examples say that are run twice, in different order.

What depends on sizes alone (masks, positions, initial states) has no rows and is computed anew for the stacked batch.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from workers.graph.layer_graph import LayerGraph
from workers.graph.tensor_meta import Apply, Expression, Symbol, SymbolicSize, TensorMeta, evaluate
from workers.pruning.examples import Layout

FIRST = Layout(0, 1)  # examples first, or last in a first axis that others are merged with
PROBE = (2, 0, 2, 1)  # examples 0, 1 and 2 in another order, of another number
TOLERANCE = 1e-3  # of the largest value: rounding differs with the batch


@dataclass(frozen=True)
class Batching:
    """How the values of a network depend on the batch."""

    batch: Symbol
    others: Mapping[str, int]  # the other symbols
    dependent: frozenset[fx.Node]  # tensors that depend on the inputs' values
    sized: frozenset[fx.Node]  # that depend on the number of examples in any way, and not on the inputs' values
    layouts: Mapping[fx.Node, Layout]  # of dependent tensors, where it is known

    def size(self, node: fx.Node, examples: int) -> int:
        """A size computed in the graph, for so many examples."""
        value = node.meta["val"]
        symbols = {**self.others, self.batch.name: examples}
        return evaluate(value.expression, symbols) if isinstance(value, SymbolicSize) else int(value)

    def leads(self, node: fx.Node) -> bool:
        """Whether the first axis of a node's value is that of the examples, and merged with no other."""
        meta, layout = node.meta.get("val"), self.layouts.get(node)
        if layout != FIRST or not isinstance(meta, TensorMeta):
            return False
        size = meta.shape[0]
        return isinstance(size, SymbolicSize) and size.expression == self.batch


def find_batching(network: LayerGraph, x: Tensor) -> Batching | None:
    """How `network` depends on its batch, of which `x` are at least three examples; None where it cannot be said."""
    takes = list(network.graph.find_nodes(op="placeholder"))
    if len(takes) != 1 or not isinstance(takes[0].meta["val"], TensorMeta):
        return None
    shape = takes[0].meta["val"].shape
    sizes = [size.expression if isinstance(size, SymbolicSize) else size for size in shape]
    if not sizes or not isinstance(sizes[0], Symbol):
        return None
    others = {size.name: x.shape[axis] for axis, size in enumerate(sizes) if isinstance(size, Symbol) and axis}
    if sizes[0].name in others:
        return None
    dependent, sized = dependence(network, sizes[0])
    batching = Batching(sizes[0], others, dependent, sized, {})
    return Batching(sizes[0], others, dependent, sized, find_layouts(network, batching, x))


def dependence(network: LayerGraph, batch: Symbol) -> tuple[frozenset[fx.Node], frozenset[fx.Node]]:
    """The nodes that depend on the inputs' values, and those that depend on the batch's size alone."""
    dependent: set[fx.Node] = set()
    sized: set[fx.Node] = set()
    for node in network.graph.nodes:
        if is_size(node):
            if mentions(getattr(node.meta["val"], "expression", 0), batch):
                sized.add(node)
        elif node.op == "placeholder" or (is_value(node) and not dependent.isdisjoint(node.all_input_nodes)):
            dependent.add(node)
        elif not sized.isdisjoint(node.all_input_nodes):
            sized.add(node)
    return frozenset(dependent), frozenset(sized)


def is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (int, SymbolicSize))


def is_value(node: fx.Node) -> bool:
    """Whether a node gives tensors: the device of a tensor does not depend on its values."""
    return node.op == "output" or isinstance(node.meta.get("val"), (TensorMeta, tuple))


def mentions(expression: Expression, symbol: Symbol) -> bool:
    if isinstance(expression, Apply):
        return any(mentions(operand, symbol) for operand in expression.operands)
    return expression == symbol


def find_layouts(network: LayerGraph, batching: Batching, x: Tensor) -> dict[fx.Node, Layout]:
    """Where examples lie in every dependent tensor; nodes of which that remains in doubt are left out."""
    found: dict[fx.Node, Layout] = {}
    merged: dict[fx.Node, tuple[int, int]] = {}
    for node in batching.dependent:
        meta = node.meta.get("val")
        axes = batch_axes(meta, batching) if isinstance(meta, TensorMeta) else []
        if len(axes) == 1:
            (axis, factor) = axes[0]
            if factor == 1:
                found[node] = Layout(axis, 1)
            elif factor is not None:
                merged[node] = axis, factor
    if merged:
        found |= merged_layouts(network, merged, x)
    return found


def batch_axes(meta: TensorMeta, batching: Batching) -> list[tuple[int, int | None]]:
    """The axes whose size depends on the batch, and by which factor; None where it is no multiple."""
    axes: list[tuple[int, int | None]] = []
    for axis, size in enumerate(meta.shape):
        if isinstance(size, SymbolicSize) and mentions(size.expression, batching.batch):
            at = [evaluate(size.expression, {**batching.others, batching.batch.name: count}) for count in (12, 24, 36)]
            factor = at[0] // 12
            axes.append((axis, factor if at == [12 * factor, 24 * factor, 36 * factor] else None))
    return axes


class Kept(fx.Interpreter):
    """Computes a network and keeps the values of some nodes; `run` returns them."""

    def __init__(self, network: LayerGraph, nodes: Collection[fx.Node]) -> None:
        super().__init__(network)
        self.nodes = frozenset(nodes)
        self.values: dict[fx.Node, object] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if n in self.nodes:
            self.values[n] = result
        return result


def values_of(network: LayerGraph, nodes: Collection[fx.Node], x: Tensor) -> dict[fx.Node, object]:
    """What `nodes` give for a batch."""
    run = Kept(network, nodes)
    run.run(x)
    return run.values


def merged_layouts(network: LayerGraph, merged: Mapping[fx.Node, tuple[int, int]], x: Tensor) -> dict[fx.Node, Layout]:
    """The order of examples within merged axes, where two runs of the same examples tell it without doubt."""
    order = torch.tensor(PROBE, device=x.device)
    plain, mixed = (values_of(network, merged, batch) for batch in (x[:3], x[:3][order]))
    found = {}
    for node, (axis, factor) in merged.items():
        before, after = plain[node], mixed[node]
        fitting = [
            layout
            for layout in (Layout(axis, inner) for inner in range(1, factor + 1) if factor % inner == 0)
            if isinstance(before, Tensor) and isinstance(after, Tensor) and same(rows(before, layout, 3, order), after)
        ]
        if len(fitting) == 1:
            found[node] = fitting[0]
    return found


def same(left: Tensor, right: Tensor) -> bool:
    """Equal but for rounding."""
    if left.shape != right.shape:
        return False
    if not left.is_floating_point():
        return torch.equal(left, right)
    finite = right[right.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 1.0
    return torch.allclose(left, right, rtol=0, atol=TOLERANCE * scale, equal_nan=True)


def rows(value: Tensor, layout: Layout, examples: int, chosen: Tensor) -> Tensor:
    """The rows of `chosen` examples, in their order, of a value of so many examples; a new tensor."""
    axis = layout.axis
    if value.shape[axis] != examples:
        split = layout.split(value, axis, examples).index_select(axis + 1, chosen)
        return split.flatten(axis, axis + 2)
    if axis == 0 and value.dim() == 4 and not value.is_contiguous():
        # Rows of a channels-last value are contiguous, but index_select copies them element by element.
        return value.permute(0, 2, 3, 1).index_select(0, chosen).permute(0, 3, 1, 2)
    return value.index_select(axis, chosen)


def leading(value: Tensor, layout: Layout, examples: int) -> Tensor:
    """A view of a value with its examples first: (examples, …the other axes in their order)."""
    axis = layout.axis
    if value.shape[axis] == examples:
        return value.movedim(axis, 0)
    return layout.split(value, axis, examples).movedim(axis + 1, 0)


def led_axis(axis: int, layout: Layout, value: Tensor, examples: int) -> int:
    """Where an axis of a value stands in `leading(value, …)`."""
    merged = value.shape[layout.axis] != examples
    if axis < layout.axis:
        return axis + 1
    return axis + 2 if merged else axis
