"""What depends on one group's reads, and how it is computed for many ablated units at once.

Of the network as it is, only a few values are needed: those that the suffix reads beside its own, the sources of the
group's reads, and what readers gave that are merely updated (consumer_updates.py). All else is computed for the rows
(unit, example) of a tile, from the first reader on.

suffix = plan(network, batching, edges, units)
logits = run_suffix(suffix, tile, before, removed)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from workers.graph.calls import is_mutating
from workers.graph.cost import example_batch
from workers.graph.functionalization import memory_owners
from workers.graph.labels import LabelArray
from workers.graph.layer_graph import LayerGraph
from workers.pruning.ablation.consumer_updates import Tile, Update, update_of
from workers.pruning.ablation.stacking import Batching, is_size, leading, led_axis
from workers.pruning.examples import Layout
from workers.pruning.observation import tensor_bytes
from workers.pruning.reads import Read

aten = torch.ops.aten

# Elementwise operators that may write over an argument that nothing else needs any more.
IN_PLACE: dict[object, Callable[..., Any]] = {
    aten.relu.default: aten.relu_.default,
    aten.hardtanh.default: aten.hardtanh_.default,
    aten.leaky_relu.default: aten.leaky_relu_.default,
    aten.hardswish.default: aten.hardswish_.default,
    aten.silu.default: aten.silu_.default,
    aten.gelu.default: aten.gelu_.default,
    aten.sigmoid.default: aten.sigmoid_.default,
    aten.tanh.default: aten.tanh_.default,
    aten.add.Tensor: aten.add_.Tensor,
    aten.mul.Tensor: aten.mul_.Tensor,
}
COMMUTATIVE = (aten.add.Tensor, aten.mul.Tensor)


class NotStackable(Exception):
    """A suffix that cannot be computed for many units in one batch; the text says why."""


@dataclass(frozen=True, eq=False)
class Edge:
    """A read, and where it stands in the network that is computed."""

    read: Read
    source: fx.Node
    reader: fx.Node
    layout: Layout  # of the source


@dataclass(frozen=True)
class Step:
    """One node of a suffix."""

    node: fx.Node
    function: Callable[..., Any]
    edges: tuple[Edge, ...] = ()  # whose channels are replaced in what this node is given
    update: Update | None = None  # in which case there is one edge and nothing is computed anew
    overwrites: int | None = None  # the argument whose memory takes the result
    done: tuple[fx.Node, ...] = ()  # rows that nothing needs afterwards


@dataclass(frozen=True)
class Suffix:
    """What is computed for ablated units of one group."""

    edges: tuple[Edge, ...]
    units: LabelArray  # the chosen ones
    steps: tuple[Step, ...]  # none where the units do not reach the output
    sized: tuple[fx.Node, ...]  # depend on the number of rows alone, and are computed first
    needs: frozenset[fx.Node]  # whose values of the network as it is are read
    output: fx.Node
    batching: Batching
    network: LayerGraph = field(repr=False)
    row_bytes: int  # held at most for one row
    widest: int  # bytes of one row's largest value

    @property
    def computed(self) -> tuple[fx.Node, ...]:
        """The nodes that are computed in full for every row."""
        return tuple(step.node for step in self.steps if step.update is None)

    @property
    def updated(self) -> tuple[Edge, ...]:
        """The reads whose readers are only updated."""
        return tuple(step.edges[0] for step in self.steps if step.update is not None)


def first_output(network: LayerGraph) -> fx.Node:
    """The node that gives the logits."""
    returned = network.graph.output_node().args[0]
    node = returned[0] if isinstance(returned, (tuple, list)) else returned
    assert isinstance(node, fx.Node)  # noqa: S101  a graph returns tensors
    return node


# Planning ---------------------------------------------------------------------------------------------------------


def plan(network: LayerGraph, batching: Batching, edges: tuple[Edge, ...], units: LabelArray) -> Suffix:
    """The suffix of the group that is read at `edges`, for the chosen `units`.

    Raises `NotStackable` where rows of a value cannot be told, or an operator writes over what others read.
    """
    output = first_output(network)
    affected = affected_nodes(network, edges, output)
    for node in affected:
        check_stackable(node, batching)
    planned: dict[fx.Node, tuple[tuple[Edge, ...], Update | None]] = {}
    for node in affected:
        own = tuple(edge for edge in edges if edge.reader is node)
        planned[node] = own, consumer_update(network, batching, node, own, affected, units)
    inputs = [source for node, (_, update) in planned.items() if update is None for source in node.all_input_nodes]
    outside = dict.fromkeys(source for source in inputs if source not in affected)
    sized = sized_nodes(network, batching, outside)
    constants = {source for node in sized for source in node.all_input_nodes}
    needs = {node for node in (*outside, *constants) if node not in batching.sized and not is_size(node)}
    for node in needs & batching.dependent:
        if node not in batching.layouts:
            raise NotStackable(f"it is not known where examples lie in {node}")
    needs |= {edge.source for edge in edges} | {node for node, (_, update) in planned.items() if update is not None}
    if output in affected and not batching.leads(output):
        raise NotStackable("the output's first axis is not that of the examples")
    steps = ordered_steps(network, planned, affected)
    held, widest = memory_of(steps, affected, batching, example_batch(network))
    return Suffix(edges, units, steps, sized, frozenset(needs), output, batching, network, held, widest)


def affected_nodes(network: LayerGraph, edges: tuple[Edge, ...], output: fx.Node) -> dict[fx.Node, None]:
    """What depends on a read and matters to the output, in the order of the graph."""
    readers = {edge.reader for edge in edges}
    reached: set[fx.Node] = set()
    for node in network.graph.nodes:
        if node.op != "output" and (node in readers or not reached.isdisjoint(node.all_input_nodes)):
            reached.add(node)
    wanted: set[fx.Node] = set()
    for node in reversed(network.graph.nodes):
        if node in reached and (node is output or not wanted.isdisjoint(node.users)):
            wanted.add(node)
    return {node: None for node in network.graph.nodes if node in wanted}


def check_stackable(node: fx.Node, batching: Batching) -> None:
    if is_mutating(node):
        raise NotStackable(f"{node} writes over its argument")
    if node not in batching.dependent:
        raise NotStackable(f"{node} is the same for all examples")


def consumer_update(
    network: LayerGraph,
    batching: Batching,
    node: fx.Node,
    edges: tuple[Edge, ...],
    affected: dict[fx.Node, None],
    units: LabelArray,
) -> Update | None:
    """How `node` is updated, where all that changes of its arguments is one source, by an ablation that comes first."""
    layout = batching.layouts.get(node)
    if len(edges) != 1 or layout is None or any(source in affected for source in node.all_input_nodes):
        return None
    edge = edges[0]
    if layout != edge.layout or (edge.read.indices[units] < 0).any():
        return None
    return update_of(network, batching, edge.read, node, units)


def sized_nodes(network: LayerGraph, batching: Batching, wanted: Mapping[fx.Node, None]) -> tuple[fx.Node, ...]:
    """The tensors among `wanted` that depend on the number of rows alone, and what they are computed from."""
    found: set[fx.Node] = set()
    for node in reversed(network.graph.nodes):
        if node in batching.sized and not is_size(node) and (node in wanted or not found.isdisjoint(node.users)):
            found.add(node)
    return tuple(node for node in network.graph.nodes if node in found)


def ordered_steps(
    network: LayerGraph,
    planned: Mapping[fx.Node, tuple[tuple[Edge, ...], Update | None]],
    affected: Mapping[fx.Node, None],
) -> tuple[Step, ...]:
    """The steps, each with what it may overwrite and what is done with after it."""
    owners = memory_owners(network.graph)
    last: dict[fx.Node, fx.Node] = {}  # by the owner of memory
    for node, (_, update) in planned.items():
        for source in node.all_input_nodes if update is None else ():
            if source in affected:
                last[owners[source]] = node
    steps = []
    for node, (edges, update) in planned.items():
        done = tuple(other for other in affected if last.get(owners[other]) is node)
        overwrites = None if edges or update else overwritten(node, done, owners)
        function = IN_PLACE[node.target] if overwrites is not None else function_of(network, node)
        steps.append(Step(node, function, edges, update, overwrites, done))
    return tuple(steps)


def function_of(network: LayerGraph, node: fx.Node) -> Callable[..., Any]:
    if node.op == "call_module":
        return network.get_submodule(str(node.target))
    if node.op == "call_function" and callable(node.target):
        return node.target
    raise NotStackable(f"{node} is a {node.op}")


def overwritten(node: fx.Node, done: tuple[fx.Node, ...], owners: Mapping[fx.Node, fx.Node]) -> int | None:
    """The place of the argument that `node` may write its result over: a whole tensor of its own, of like shape."""
    if node.target not in IN_PLACE:
        return None
    places = (0, 1) if node.target in COMMUTATIVE and not node.kwargs and len(node.args) == 2 else (0,)
    for place in places:
        source = node.args[place]
        if isinstance(source, fx.Node) and source in done and owners[source] is source and is_own(source):
            uses = [arg for arg in node.args if isinstance(arg, fx.Node) and owners[arg] is source]
            if len(uses) == 1 and like(source, node):
                return place
    return None


def is_own(node: fx.Node) -> bool:
    """Whether a node's value is surely a new tensor: what a layer gives, or an elementwise operator."""
    return node.op == "call_module" or node.target in IN_PLACE or node.target is aten.linear.default


def like(source: fx.Node, node: fx.Node) -> bool:
    """Whether a result is of its argument's shape and type."""
    return source.meta.get("val") == node.meta.get("val")


def memory_of(
    steps: tuple[Step, ...], affected: Mapping[fx.Node, None], batching: Batching, examples: int
) -> tuple[int, int]:
    """Bytes of one row: at most held at once, gathered rows and kernels' copies included; and of the largest value."""
    sizes = {node: tensor_bytes(node.meta.get("val")) // examples for node in affected}
    live = peak = widest = 0
    for step in steps:
        gathered = [
            tensor_bytes(source.meta.get("val")) // examples
            for source in step.node.all_input_nodes
            if step.update is None and source not in affected and source in batching.dependent
        ]
        live += sizes[step.node]
        peak = max(peak, live + sum(gathered) + 2 * sizes[step.node])
        widest = max([widest, sizes[step.node], *gathered])
        live -= sum(sizes[node] for node in step.done)
    return peak, widest


def pass_bytes(network: LayerGraph) -> int:
    """Bytes that one example's values hold at most at once while the whole network runs, views counted with owners."""
    owners = memory_owners(network.graph)
    held = {node: tensor_bytes(node.meta.get("val")) for node in network.graph.nodes if node.op != "get_attr"}
    last = {owners[source]: node for node in network.graph.nodes for source in node.all_input_nodes}
    live = peak = 0
    for node in network.graph.nodes:
        live += held.get(node, 0) if owners[node] is node else 0
        peak = max(peak, live)
        live -= sum(
            held.get(source, 0) for source in {owners[one] for one in node.all_input_nodes} if last[source] is node
        )
    return peak // example_batch(network)


# Running ----------------------------------------------------------------------------------------------------------


@dataclass
class Ablations:
    """What stands in for the chosen units at each source that is read, computed from the network as it is.

    `removed[source]` is r, (units, N, w, …); `kept[source]` is x − r of the same shape, or None where that is zero.
    """

    removed: Mapping[fx.Node, Tensor]
    kept: Mapping[fx.Node, Tensor | None]
    present: Mapping[fx.Node, Tensor]  # (units,) bool
    indices: Mapping[fx.Node, Tensor]  # (units, w) int64


def run_suffix(
    suffix: Suffix, tile: Tile, before: Mapping[fx.Node, Any], ablations: Ablations, examples: int
) -> Tensor:
    """The logits of a tile's rows: (R, K). `before` holds the values of `suffix.needs` for a batch of `examples`."""
    run = Run(suffix, tile, before, ablations, examples)
    for step in suffix.steps:
        run.step(step)
    logits: Tensor = run.values[suffix.output]
    return logits


class Run:
    """One tile on its way through a suffix."""

    def __init__(
        self, suffix: Suffix, tile: Tile, before: Mapping[fx.Node, Any], ablations: Ablations, examples: int
    ) -> None:
        self.suffix = suffix
        self.tile = tile
        self.before = before
        self.ablations = ablations
        self.examples = examples
        self.values: dict[fx.Node, Any] = {}
        for node in suffix.sized:
            self.values[node] = self.call(node, function_of(suffix.network, node))

    def step(self, step: Step) -> None:
        if step.update is not None:
            removed = self.ablations.removed[step.edges[0].source]
            self.values[step.node] = step.update(self.before[step.node], removed, self.tile, self.examples)
        elif step.overwrites is not None:
            self.values[step.node] = self.overwrite(step, step.overwrites)
        elif step.edges:
            given = {edge.source: self.ablated(edge, step) for edge in step.edges}
            self.values[step.node] = self.call(step.node, step.function, given)
        else:
            self.values[step.node] = self.call(step.node, step.function)
        for node in step.done:
            self.values.pop(node, None)

    def call(self, node: fx.Node, function: Callable[..., Any], given: Mapping[fx.Node, Tensor] | None = None) -> Any:
        def value(source: fx.Node) -> Any:
            return given[source] if given is not None and source in given else self.value(source)

        return function(*fx.node.map_arg(node.args, value), **fx.node.map_arg(node.kwargs, value))

    def overwrite(self, step: Step, place: int) -> Any:
        args = [self.value(arg) if isinstance(arg, fx.Node) else arg for arg in step.node.args]
        kwargs = fx.node.map_arg(step.node.kwargs, self.value)
        return step.function(args[place], *args[:place], *args[place + 1 :], **kwargs)

    def value(self, node: fx.Node) -> Any:
        """A node's value for the rows of the tile."""
        if node in self.values:
            return self.values[node]
        batching = self.suffix.batching
        if is_size(node):
            return batching.size(node, len(self.tile))
        if node in batching.dependent:
            return self.tile.rows(self.before[node], batching.layouts[node], self.examples)
        return self.before[node]

    def ablated(self, edge: Edge, step: Step) -> Tensor:
        """What the reader of an edge is given: the source's value, with the units' channels replaced."""
        own = edge.source in self.values
        value: Tensor = self.value(edge.source)
        if (own and not (edge.source in step.done and is_own(edge.source))) or (not own and self.tile.span is not None):
            value = value.clone()
        led = leading(value, edge.layout, len(self.tile))
        led = led.movedim(led_axis(edge.read.axis, edge.layout, value, len(self.tile)), 1)
        slots, examples, kept = self.tile.slots, self.tile.examples, self.ablations.kept[edge.source]
        present = self.ablations.present[edge.source][slots]
        places = torch.arange(len(self.tile), device=value.device)
        if not bool(present.all()):
            places, slots, examples = places[present], slots[present], examples[present]
        replacement = torch.zeros((), dtype=value.dtype) if kept is None else kept[slots, examples]
        led[places[:, None], self.ablations.indices[edge.source][slots]] = replacement
        return value
