"""What a graph costs, node by node: multiply-accumulates, parameters, bytes held and bytes in flight.

MACs are counted as everywhere in Stillhouse (workers/evaluation/cost.py): torch's own FLOP counter, two FLOPs a
MAC, fused kernels taken apart. Here the graph runs on the meta device, so that nothing is computed, and the
counter is read between nodes, so that every node's share is known.

Peak activation bytes are those of evaluation: walking through the graph in order, a tensor lives from the node
that makes it to the last node that uses it or a view of it. Weights are not activations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from workers.evaluation.cost import MATRIX_VECTOR_FLOPS, unfused
from workers.graph.functionalization import memory_owners
from workers.graph.layer_graph import LayerGraph
from workers.graph.propagation import propagate


@dataclass(frozen=True)
class GraphCost:
    """Costs of a network; MACs and activations are those of one example."""

    parameters: int  # shared weights once
    macs: int
    peak_activation_bytes: int
    bytes: int  # parameters and buffers as they are held, shared ones once
    macs_by_node: Mapping[str, int]  # node name -> MACs of one example, where there are any


def graph_cost(network: LayerGraph) -> GraphCost:
    """The cost of `network` in evaluation mode, at the sizes of its example inputs; its mode is left as it was."""
    batch = example_batch(network)
    results, flops = count_flops(network)
    held: list[Tensor] = [*network.parameters(), *network.buffers()]
    return GraphCost(
        parameters=sum(weight.numel() for weight in network.parameters()),
        macs=sum(flops.values()) // (2 * batch),
        peak_activation_bytes=peak_bytes(network.graph, results) // batch,
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in held),
        macs_by_node={node.name: count // (2 * batch) for node, count in flops.items() if count},
    )


def example_batch(network: LayerGraph) -> int:
    """How many examples the example inputs are: the first size of the first input."""
    shapes = [meta.example_shape for meta in network.inputs.values() if meta.shape]
    return max(shapes[0][0], 1) if shapes else 1


def count_flops(network: LayerGraph) -> tuple[Mapping[fx.Node, Any], dict[fx.Node, int]]:
    """What each node gives on the meta device, and the FLOPs that it takes for it."""
    counter = FlopCounterMode(display=False, custom_mapping=MATRIX_VECTOR_FLOPS)
    flops: dict[fx.Node, int] = {}
    counted = 0

    def count(node: fx.Node) -> None:
        nonlocal counted
        total = int(counter.get_total_flops())
        flops[node], counted = total - counted, total

    training = network.training
    network.eval()
    try:
        with unfused(), counter:
            results = propagate(network, after_node=count)
    finally:
        network.train(training)
    return results, flops


def peak_bytes(graph: fx.Graph, results: Mapping[fx.Node, Any]) -> int:
    """The most bytes that activations hold at any one node."""
    owners = memory_owners(graph)
    order = {node: index for index, node in enumerate(graph.nodes)}
    last_use = {owner: order[owner] for owner in owners.values()}
    for node, owner in owners.items():
        last_use[owner] = max([last_use[owner], *(order[user] for user in node.users)])
    changes = [0] * (len(order) + 1)
    for owner, end in last_use.items():
        if owner.op != "get_attr":
            changes[order[owner]] += bytes_of(results.get(owner))
            changes[end + 1] -= bytes_of(results.get(owner))
    peak = live = 0
    for change in changes:
        live += change
        peak = max(peak, live)
    return peak


def bytes_of(result: object) -> int:
    """Bytes of a tensor, or of several; a result that is a view of parts of one is counted with its owner."""
    if isinstance(result, Tensor):
        return result.numel() * result.element_size()
    return sum(map(bytes_of, result)) if isinstance(result, (tuple, list)) else 0
