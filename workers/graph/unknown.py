"""What is done about an operator without a rule: everything that reaches it stays as it is."""

from torch import fx

from workers.graph.sites import Held, Site, Value

UNKNOWN = "an operator without a rule"


def unknown(site: Site) -> Value:
    """Pin all channels that reach the operator; its results carry none."""
    for tensor in everything(site):
        if isinstance(tensor, Held):
            site.pin_held(tensor, UNKNOWN)
        else:
            pin_node(site, tensor)
    return [None] * len(site.result_shapes) if site.result_shapes else None


def everything(site: Site) -> list[fx.Node | Held]:
    """Every node and held tensor that the call sees."""
    held = [value for value in site.tensors if isinstance(value, Held)]
    return [*held, *site.node.all_input_nodes]


def pin_node(site: Site, node: fx.Node, reason: str = UNKNOWN) -> None:
    """Pin the labels of a node, of all its results."""
    value = site.reading.values.get(node)
    if isinstance(value, Held):
        site.pin_held(value, reason)
    elif isinstance(value, list):
        for labels in value:
            site.pin(labels, reason)
    else:
        site.pin(value, reason)
