"""Which rule an operator has, and the pass that reads a whole network by them.

A rule is a function from a site to the labels of its result: an array or None, a list of them for an operator with
several results, or the held tensor of which the result is a view. What it says about labels goes into the ledger.
An operator that stands in no table pins what reaches it.
"""

import operator
from collections.abc import Callable

import numpy as np
from torch import fx

from workers.graph.calls import is_aten
from workers.graph.layer_graph import LayerGraph
from workers.graph.rules_elementwise import ELEMENTWISE
from workers.graph.rules_layers import LAYER_RULES
from workers.graph.rules_pieces import PIECE_RULES
from workers.graph.rules_products import PRODUCT_RULES
from workers.graph.rules_reductions import REDUCTION_RULES
from workers.graph.rules_shape import SHAPE_RULES
from workers.graph.sites import OPERATORS, Reading, Site, Value, site_of
from workers.graph.unknown import pin_node, unknown

RULES: dict[str, Callable[[Site], Value]] = {
    **ELEMENTWISE,
    **LAYER_RULES,
    **PRODUCT_RULES,
    **SHAPE_RULES,
    **PIECE_RULES,
    **REDUCTION_RULES,
    "sym_size": lambda _: None,
    "sym_numel": lambda _: None,
}


def read_network(network: LayerGraph) -> Reading:
    """Everything that the operators of `network` say about labels."""
    reading = Reading(network)
    for node in network.graph.nodes:
        if node.op in {"call_module", "call_function", "output"}:
            visit(node, reading)
    return reading


def visit(node: fx.Node, reading: Reading) -> None:
    """Give a node its labels and the ledger what the node says."""
    site = site_of(node, reading)
    if node.op == "output":
        for returned in node.all_input_nodes:
            pin_node(site, returned, "the network's output")
        return
    value = value_of(site)
    reading.values[node] = value
    for labels in value if isinstance(value, list) else [value]:
        if isinstance(labels, np.ndarray):
            reading.ledger.note_result(labels)


def value_of(site: Site) -> Value:
    """The labels of one call's result."""
    node = site.node
    if node.target is operator.getitem:
        parts = site.reading.values.get(node.all_input_nodes[0])
        return parts[int(str(node.args[1]))] if isinstance(parts, list) else None
    if is_switch_or_size(site):
        return None
    return RULES.get(site.operator, unknown)(site)


def is_switch_or_size(site: Site) -> bool:
    """Whether a call computes no tensor: a switch of the mode, or arithmetic on sizes."""
    node = site.node
    if node.op == "call_module":
        return type(site.reading.network.get_submodule(str(node.target))) not in OPERATORS
    return not is_aten(node)
