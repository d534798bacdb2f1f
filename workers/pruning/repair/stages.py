"""In which order layers are refitted, and what has to be computed in between.

A refit sees what the refits before it really produce. So the network is gone through in stages: in each, those
layers are solved for whose inputs no unsolved layer has a part in; both networks are carried on just as far as these
inputs and aims, from where the stage before left them; and only what later stages still need is kept. Layers side by
side (queries, keys and values; the branches of a block) share a stage.

What follows from parameters alone is not kept but computed again where it is needed: it is one thing for all
batches, and may be refitted meanwhile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from workers.graph.layer_graph import LayerGraph
from workers.pruning.repair.dependencies import Dependencies
from workers.pruning.repair.readers import Reader


@dataclass(frozen=True)
class Leg:
    """A part of a network's way: the nodes to compute, and which of their values are needed afterwards."""

    nodes: tuple[fx.Node, ...]  # in the order of the graph
    dead_after: Mapping[fx.Node, tuple[fx.Node, ...]]  # values that nothing in this leg or later needs any more
    wanted: tuple[fx.Node, ...]  # what is looked at when the leg is done
    left: frozenset[fx.Node]  # what later legs need


@dataclass(frozen=True)
class Stage:
    """Layers that are solved for together, and the way there in both networks."""

    readers: tuple[Reader, ...]
    student: Leg
    teacher: Leg


def plan(student: LayerGraph, teacher: LayerGraph, num_bytes: Mapping[Reader, int], memory_bytes: int) -> list[Stage]:
    """The stages for layers whose evidence takes `num_bytes`; those of one stage fit into the memory together."""
    batches = in_order(student, num_bytes, memory_bytes)
    mine = legs(student, [[name for reader in batch for name in looked_at(reader)] for batch in batches])
    theirs = legs(teacher, [[aim(reader) for reader in batch] for batch in batches])
    return [Stage(tuple(batch), *both) for batch, *both in zip(batches, mine, theirs, strict=True)]


def looked_at(reader: Reader) -> list[str]:
    """The student's nodes that solving for a layer needs."""
    return [reader.source] if reader.residual is None else [reader.source, reader.residual.other]


def aim(reader: Reader) -> str:
    """The teacher's node that solving for a layer needs."""
    return reader.said if reader.residual is None else reader.residual.node


def in_order(student: LayerGraph, num_bytes: Mapping[Reader, int], memory_bytes: int) -> list[list[Reader]]:
    """Readers stage by stage: each when nothing that it looks at waits for a layer that is still to be solved."""
    graph = Dependencies(student)
    waiting, stages = list(num_bytes), list[list[Reader]]()
    while waiting:
        unsolved = sum(graph.bit[reader.node] for reader in waiting)
        ready = [reader for reader in waiting if not graph.before(looked_at(reader)) & unsolved]
        assert ready, "a layer's other side comes before their sum, and so before whatever follows from the layer"  # noqa: S101
        stages.append(within(ready, num_bytes, memory_bytes))
        waiting = [reader for reader in waiting if reader not in stages[-1]]
    return stages


def within(readers: Sequence[Reader], num_bytes: Mapping[Reader, int], memory_bytes: int) -> list[Reader]:
    """The first of `readers`, and those after it that fit into the memory beside it."""
    chosen = [readers[0]]
    for reader in readers[1:]:
        if sum(num_bytes[one] for one in [*chosen, reader]) <= memory_bytes:
            chosen.append(reader)
    return chosen


def legs(network: LayerGraph, wanted: Sequence[Sequence[str]]) -> list[Leg]:
    """The way through a network to what is wanted at the end of each stage."""
    graph = Dependencies(network)
    by_name, constant = {node.name: node for node in graph.nodes}, graph.constant
    ends = [tuple(dict.fromkeys(by_name[name] for name in stage)) for stage in wanted]
    ways, known = [], set[fx.Node]()
    for stage in ends:
        ways.append(graph.way_to(stage, known))
        known |= set(ways[-1]) - constant
    later, made = set[fx.Node](), []
    for nodes, stage in zip(reversed(ways), reversed(ends), strict=True):
        left = frozenset(later - constant)
        made.append(Leg(nodes, dead_after(nodes, {*stage, *left}), stage, left))
        used = {source for node in nodes for source in node.all_input_nodes}
        later = (later | used | set(stage)) - set(nodes)
    return made[::-1]


def dead_after(nodes: Sequence[fx.Node], lasting: set[fx.Node]) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """For each node the values that it is the last to use, and that do not last."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        last |= dict.fromkeys((node, *node.all_input_nodes), node)
    found: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for value, user in last.items():
        if value not in lasting:
            found[user] = (*found.get(user, ()), value)
    return found
