"""A node's arguments by their names in the operator's schema, defaults included.

`aten.conv2d(x, w, b, [2, 2])` says nothing of padding, dilation and groups; its schema does. Everything that
inspects a graph asks here, so that no code counts positions.
"""

from typing import Any

from torch import fx
from torch._C import Argument
from torch._ops import OpOverload


def schema_arguments(overload: "OpOverload[..., Any]") -> list[Argument]:
    """The formal arguments of an overload, in order."""
    return list(overload._schema.arguments)  # noqa: SLF001  torch's only way to a schema


def is_aten(node: fx.Node, *names: str) -> bool:
    """Whether `node` calls an ATen operator, one of `names` (without overload) where any are given."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload) or node.target.namespace != "aten":
        return False
    return not names or operator_name(node) in names


def operator_name(node: fx.Node) -> str:
    """`conv2d` for a call of `aten.conv2d.padding`, and empty for what calls no overload."""
    return node.target._schema.name.partition("::")[2] if isinstance(node.target, OpOverload) else ""  # noqa: SLF001


def overload_of(node: fx.Node) -> "OpOverload[..., Any]":
    """The overload that `node` calls; `TypeError` where it calls none."""
    if not isinstance(node.target, OpOverload):
        raise TypeError(f"{node} calls {node.target}, which is no operator with a schema")
    return node.target


def is_mutating(node: fx.Node) -> bool:
    """Whether `node` calls an operator that writes over one of its arguments."""
    return is_aten(node) and bool(overload_of(node)._schema.is_mutable)  # noqa: SLF001  torch's only way to a schema


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Every argument of a call of an overload by name; those left out have their defaults."""
    named: dict[str, Any] = {}
    for position, formal in enumerate(schema_arguments(overload_of(node))):
        if position < len(node.args):
            named[formal.name] = node.args[position]
        else:
            named[formal.name] = node.kwargs.get(formal.name, formal.default_value)
    return named


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Give `node` another value for one argument, wherever it stands; earlier positions take their defaults."""
    formals = schema_arguments(overload_of(node))
    position = next(index for index, formal in enumerate(formals) if formal.name == name)
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def drop_argument(node: fx.Node, name: str) -> None:
    """Take a keyword argument away, so that it has its default."""
    node.kwargs = {key: value for key, value in node.kwargs.items() if key != name}
