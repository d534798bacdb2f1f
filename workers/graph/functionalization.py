"""In-place operators become ordinary ones, wherever that changes nothing.

`relu_(x)` writes over x; `relu(x)` leaves it. Analyses and surgery think in values, so the second form is wanted.
It computes the same wherever nothing else looks at x's memory afterwards: neither x itself, whose later uses
are given the result instead, nor a view of x, nor what x is a view of. Where something does look, the operator
stays as it is, and the graph keeps computing what the original computed. So does what updates a parameter or
buffer, which is meant to last.
"""

from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from workers.graph.calls import is_aten, is_mutating, schema_arguments

# They return their input itself in evaluation mode, though their schemas do not say so.
PASSING = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")


def functionalize(graph: fx.Graph) -> None:
    """Rewrite `graph`'s in-place calls where it can be done."""
    memory = memory_owners(graph)
    position = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        mutated = mutated_input(node)
        replacement = functional_form(node)
        if mutated is None or replacement is None or memory[mutated].op == "get_attr":
            continue
        use_result(node, mutated, position)
        if not looked_at_later(node, memory, position):
            node.target = replacement
            memory[node] = node


def use_result(node: fx.Node, mutated: fx.Node, position: dict[fx.Node, int]) -> None:
    """Let what uses the written value after `node` use its result, which is the same."""
    mutated.replace_all_uses_with(node, delete_user_cb=lambda user: position[user] > position[node])


def mutated_input(node: fx.Node) -> fx.Node | None:
    """The value that an in-place call writes over, which is its first argument."""
    if not is_mutating(node):
        return None
    first = node.args[0]
    return first if isinstance(first, fx.Node) else None


def functional_form(node: fx.Node) -> "OpOverload[..., Any] | None":
    """`aten.relu.default` for `aten.relu_.default`; None where there is no such operator."""
    if not isinstance(node.target, OpOverload):
        return None
    name, variant = node.target._schema.name.partition("::")[2], node.target._overloadname  # noqa: SLF001
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
    found: OpOverload[..., Any] | None = getattr(packet, variant, None)
    return found


def memory_owners(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For each value, the value that first held its memory: itself, or what it is a view of."""
    owners: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        viewed = viewed_input(node)
        owners[node] = owners[viewed] if viewed is not None else node
    return owners


def viewed_input(node: fx.Node) -> fx.Node | None:
    """The argument whose memory the result may share, by the aliases that the schema declares."""
    if node.op != "call_function":
        return None
    first = next((argument for argument in node.args if isinstance(argument, fx.Node)), None)
    if not isinstance(node.target, OpOverload) or is_aten(node, *PASSING):
        return first  # `getitem` of a split is a view of what was split
    aliases = any(argument.alias_info is not None for argument in schema_arguments(node.target)[:1])
    return first if aliases else None


def looked_at_later(node: fx.Node, memory: dict[fx.Node, fx.Node], position: dict[fx.Node, int]) -> bool:
    """Whether the memory that `node` writes over is used after it through another value."""
    others = [
        other
        for other, owner in memory.items()
        if owner is memory[node] and other is not node and position[other] < position[node]
    ]
    return any(position[user] > position[node] for other in others for user in other.users)
