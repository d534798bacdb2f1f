"""What must be computed before what in a graph."""

from collections.abc import Iterable

from torch import fx

from workers.graph.calls import is_mutating
from workers.graph.layer_graph import LayerGraph


class Dependencies:
    """What must be computed before what; sets of nodes are the bits of an integer.

    What writes over memory comes after all that stands before it, and before all that stands behind it.
    """

    def __init__(self, network: LayerGraph) -> None:
        self.nodes = tuple(network.graph.nodes)
        self.bit = {node.name: 1 << place for place, node in enumerate(self.nodes)}
        self.direct: dict[str, list[fx.Node]] = {}
        self.all: dict[str, int] = {}  # with the node itself
        barrier: list[fx.Node] = []
        for place, node in enumerate(self.nodes):
            self.direct[node.name] = list(self.nodes[:place]) if is_mutating(node) else node.all_input_nodes + barrier
            self.all[node.name] = self.bit[node.name] | self.before([one.name for one in self.direct[node.name]])
            if is_mutating(node):
                barrier = [node]

    def before(self, names: Iterable[str]) -> int:
        """These nodes and all that must be computed before them."""
        found = 0
        for name in names:
            found |= self.all[name]
        return found

    @property
    def constant(self) -> set[fx.Node]:
        """What follows from parameters alone."""
        inputs = sum(self.bit[node.name] for node in self.nodes if node.op == "placeholder")
        return {node for node in self.nodes if not self.all[node.name] & inputs}

    def way_to(self, ends: Iterable[fx.Node], known: set[fx.Node]) -> tuple[fx.Node, ...]:
        """What is still to be computed for `ends`, in the order of the graph."""
        required, waiting = set[fx.Node](), [end for end in ends if end not in known]
        while waiting:
            node = waiting.pop()
            if node not in required:
                required.add(node)
                waiting += [one for one in self.direct[node.name] if one not in known]
        return tuple(node for node in self.nodes if node in required)
