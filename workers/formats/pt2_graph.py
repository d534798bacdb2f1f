"""From the parsed JSON of an archive to a graph of known operators.

Values are looked up by the archive's own names for them and never given to anyone: nodes are named after their
operators, by us. What the file says of a call is held against the operator's schema: the arguments' names, and
that every value exists. Shapes are recorded as claims, which lifting computes again.

A region without gradients (`torch.no_grad()` in the model) is written as a subgraph; it is read in line, and its
results are detached, which gives the same gradients.
"""

import math
import operator
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from service.contract.errors import InputRejected
from workers.formats import pt2_schema as schema
from workers.formats.operators import CHECKS, resolve
from workers.formats.pt2_archive import malformed
from workers.formats.pt2_names import is_qualified_name
from workers.formats.pt2_schema import LARGEST_GRAPH
from workers.formats.pt2_tensors import dtype_of
from workers.formats.symbols import NotAnExpression, parse_size
from workers.graph.calls import schema_arguments
from workers.graph.tensor_meta import Expression, Symbol, SymbolicSize, TensorMeta, evaluate

GRAD_REGION = "torch.ops.higher_order.wrap_with_set_grad_enabled"
DEEPEST_REGION = 8
MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
WORDS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
LARGEST_SIZE = 2**40


@dataclass
class GraphBuilder:
    """The graph as far as it is read."""

    values: Mapping[str, schema.TensorMeta]  # of the whole archive, by its names for them
    sizes: Mapping[str, schema.SymInt]
    module_names: frozenset[str]  # of modules in which an operator may have been called
    graph: fx.Graph = field(default_factory=fx.Graph)
    named: dict[str, fx.Node] = field(default_factory=dict)  # the archive's names for values -> nodes
    bindings: dict[str, int] = field(default_factory=dict)  # symbols -> their values at the example inputs
    binding: bool = False  # while inputs are read: only their sizes give values to symbols
    parsed: dict[str, Expression] = field(default_factory=dict)  # expressions are written many times over

    def node(self, name: str) -> fx.Node:
        if name not in self.named:
            raise malformed(f"the graph uses {name[:120]!r} before anything computes it")
        return self.named[name]

    def define(self, name: str, node: fx.Node) -> None:
        """Let `name` mean `node`, with the shape that the archive claims for it."""
        if name in self.named:
            raise malformed(f"the graph computes {name[:120]!r} twice")
        node.meta["val"] = self.meta(name)
        self.named[name] = node

    def meta(self, name: str) -> TensorMeta:
        """The claimed shape and dtype of a value."""
        if name not in self.values:
            raise malformed(f"nothing is said of the shape of {name[:120]!r}")
        claim = self.values[name]
        return TensorMeta(tuple(self.size(size) for size in claim.sizes), dtype_of(claim.dtype, name))

    def size(self, size: schema.SymInt) -> int | SymbolicSize:
        """A plain or symbolic size."""
        if size.as_expr is None:
            value = only(size, "size")
            if not 0 <= value <= LARGEST_SIZE:
                raise malformed(f"{value} is no size of a tensor")
            return int(value)
        return self.symbolic(size.as_expr)

    def symbolic(self, text: schema.SymExpr) -> SymbolicSize:
        """A symbolic size, whose hint must be what its expression gives."""
        try:
            expression = self.parsed.get(text.expr_str)
            if expression is None:
                expression = self.parsed[text.expr_str] = parse_size(text.expr_str)
            hint = text.hint.as_int if text.hint is not None else None
            if isinstance(expression, Symbol) and hint is not None and self.binding:
                self.bindings.setdefault(expression.name, hint)
            value = evaluate(expression, self.bindings)
        except (NotAnExpression, KeyError, ValueError, ZeroDivisionError) as error:
            raise InputRejected(
                f"The size {text.expr_str[:120]!r} cannot be read: {error}. Sizes may depend on those of the inputs "
                "by integer arithmetic only.",
                code="size_refused",
            ) from None
        if hint not in {None, value} or abs(value) > LARGEST_SIZE:
            raise malformed(f"the size {text.expr_str[:120]!r} is {value} at the example inputs, not {hint}")
        return SymbolicSize(expression, value)


def only(union: schema.Record, what: str) -> Any:
    """The one field that a union gives."""
    given = [(key, getattr(union, key)) for key in union.model_fields_set]
    if len(given) != 1 or given[0][1] is None:
        raise malformed(f"a {what} in the graph has {len(given)} values where one is due")
    return given[0][1]


def kind(union: schema.Record) -> str:
    """Which field a union gives."""
    only(union, "value")
    return next(iter(union.model_fields_set))


# Arguments -------------------------------------------------------------------------------------------------------


def as_float(value: float | str) -> float:
    return WORDS[value] if isinstance(value, str) else value


def symbolic_argument(builder: GraphBuilder, given: schema.Record) -> Any:
    """A number, or the node that computes it."""
    value = only(given, "number")
    if kind(given) == "as_name":
        return builder.node(value)
    return as_float(value) if kind(given) == "as_float" else value


def optional_tensor(builder: GraphBuilder, given: schema.OptionalTensorArgument) -> fx.Node | None:
    return builder.node(given.as_tensor.name) if given.as_tensor is not None else None


def look_up(table: Mapping[int, Any], number: int, what: str) -> Any:
    if number not in table:
        raise malformed(f"{number} is no {what}")
    return table[number]


# What each kind of argument means: (builder, the given value) -> an argument of a node.
ARGUMENTS: dict[str, Callable[[GraphBuilder, Any], Any]] = {
    "as_none": lambda _builder, _given: None,
    "as_tensor": lambda builder, given: builder.node(given.name),
    "as_tensors": lambda builder, given: [builder.node(tensor.name) for tensor in given],
    "as_optional_tensor": optional_tensor,
    "as_optional_tensors": lambda builder, given: [optional_tensor(builder, tensor) for tensor in given],
    "as_int": lambda _, given: given,
    "as_ints": lambda _, given: list(given),
    "as_float": lambda _, given: as_float(given),
    "as_floats": lambda _, given: [as_float(value) for value in given],
    "as_bool": lambda _, given: given,
    "as_bools": lambda _, given: list(given),
    "as_string": lambda _, given: given,
    "as_sym_int": symbolic_argument,
    "as_sym_ints": lambda builder, given: [symbolic_argument(builder, value) for value in given],
    "as_sym_float": symbolic_argument,
    "as_sym_bool": symbolic_argument,
    "as_scalar_type": lambda _, given: dtype_of(given, "an argument"),
    "as_memory_format": lambda _, given: look_up(MEMORY_FORMATS, given, "memory format"),
    "as_layout": lambda _, given: look_up({7: torch.strided}, given, "layout of a plain tensor"),
    "as_device": lambda _builder, _given: torch.device("cpu"),  # the export's; lifting lets it follow the input
}


def argument(builder: GraphBuilder, given: schema.Argument) -> Any:
    """The value of one argument."""
    if kind(given) not in ARGUMENTS:
        raise malformed(f"{kind(given)} is no argument of an operator")
    return ARGUMENTS[kind(given)](builder, only(given, "argument"))


def arranged(overload: "OpOverload[..., Any]", named: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`named` as positional and keyword arguments, in the schema's order; every name must be the schema's."""
    formals = schema_arguments(overload)
    unknown = named.keys() - {formal.name for formal in formals}
    missing = [f.name for f in formals if f.name not in named and not f.has_default_value()]
    if unknown or missing:
        wrong = f"has no argument {min(unknown)[:60]!r}" if unknown else f"needs {missing[0]!r}"
        raise malformed(f"{overload} {wrong}")
    positional = [formal for formal in formals if not formal.kwarg_only]
    while positional and positional[-1].name not in named:
        positional.pop()
    args = tuple(named.get(formal.name, formal.default_value) for formal in positional)
    keywords = {f.name: named[f.name] for f in formals if f.kwarg_only and f.name in named}
    return args, keywords


# Nodes -----------------------------------------------------------------------------------------------------------


def add_nodes(builder: GraphBuilder, nodes: tuple[schema.Node, ...], depth: int = 0) -> None:
    """Append all nodes of a graph or region."""
    for node in nodes:
        if len(builder.graph.nodes) > LARGEST_GRAPH:
            raise malformed(f"its graph has more than {LARGEST_GRAPH} nodes")
        if node.target == GRAD_REGION:
            add_region(builder, node, depth)
        elif node.target not in CHECKS:
            add_call(builder, node)


def add_call(builder: GraphBuilder, node: schema.Node) -> None:
    """Append one call and define what it computes."""
    target = resolve(node.target)
    named = {given.name: argument(builder, given.arg) for given in node.inputs}
    if len(named) != len(node.inputs):
        raise malformed(f"a call of {node.target} gives an argument twice")
    if isinstance(target, OpOverload):
        args, keywords = arranged(target, named)
    else:
        args, keywords = tuple(named.values()), {}
    call = builder.graph.call_function(target, args, keywords)
    call.meta["val"] = None
    module = calling_module(node.metadata)
    if module in builder.module_names:
        call.meta["module"] = module
    define_results(builder, call, node.outputs)


def calling_module(metadata: Mapping[str, str]) -> str:
    """The innermost module of an operator's recorded module stack, empty where there is none.

    Source of the form: torch/_export/serde/serialize.py, `serialize_metadata`: `key,path,class;key,path,class;...`
    """
    last = metadata.get("nn_module_stack", "").rpartition(";")[2].split(",")
    return last[1] if len(last) == 3 else ""


def define_results(builder: GraphBuilder, call: fx.Node, outputs: tuple[schema.Argument, ...]) -> None:
    """Give a call's results their names: one value, or one `getitem` for each of several."""
    if len(outputs) == 1 and outputs[0].as_tensor is not None:
        builder.define(outputs[0].as_tensor.name, call)
    elif len(outputs) == 1 and kind(outputs[0]) in {"as_sym_int", "as_sym_float", "as_sym_bool"}:
        define_number(builder, call, outputs[0])
    else:
        results = list(result_names(outputs))
        for index, name in enumerate(results):
            if name is not None:
                builder.define(name, builder.graph.call_function(operator.getitem, (call, index)))
        call.meta["val"] = tuple(None if name is None else builder.meta(name) for name in results) or None


def define_number(builder: GraphBuilder, call: fx.Node, output: schema.Argument) -> None:
    """Name a size, or another number computed from sizes."""
    name = only(output, "number").as_name
    if name is None or name in builder.named:
        raise malformed("a number in the graph has no name of its own")
    if kind(output) == "as_sym_int":
        if name not in builder.sizes:
            raise malformed(f"nothing is said of the size {name[:120]!r}")
        size = builder.sizes[name]
        call.meta["val"] = builder.symbolic(size.as_expr) if size.as_expr is not None else only(size, "size")
    builder.named[name] = call


def result_names(outputs: tuple[schema.Argument, ...]) -> Iterator[str | None]:
    """The names of several results in order, None for one that nobody uses."""
    for output in outputs:
        if output.as_tensors is not None and len(outputs) == 1:
            yield from (tensor.name for tensor in output.as_tensors)
        elif output.as_tensor is not None:
            yield output.as_tensor.name
        elif output.as_none:
            yield None
        else:
            raise malformed(f"{kind(output)} is no result of an operator")


def add_region(builder: GraphBuilder, node: schema.Node, depth: int) -> None:
    """Append a region with or without gradients in line."""
    if depth >= DEEPEST_REGION or len(node.inputs) < 2 or node.inputs[1].arg.as_graph is None:
        raise malformed("a region without gradients is not written as torch writes it")
    enabled, region = node.inputs[0].arg.as_bool, node.inputs[1].arg.as_graph.graph
    if enabled is None or (enabled and depth):
        raise InputRejected(
            "The graph calls enable_grad() inside no_grad(), which is not read; export the model without it.",
            code="operator_refused",
        )
    outer, operands = builder.named, [argument(builder, given.arg) for given in node.inputs[2:]]
    names = [only(given, "input") for given in region.inputs]
    if len(names) != len(operands):
        raise malformed("a region without gradients takes other inputs than it is given")
    # Names inside are the region's own; values and sizes of both are described in the one or the other.
    inner = GraphBuilder(
        values=ChainMap(region.tensor_values, builder.values),  # type: ignore[arg-type]  # it is only read
        sizes=ChainMap(region.sym_int_values, builder.sizes),  # type: ignore[arg-type]  # as above
        module_names=builder.module_names,
        graph=builder.graph,
        named={getattr(name, "name", None) or name.as_name: node for name, node in zip(names, operands, strict=True)},
        bindings=builder.bindings,
        parsed=builder.parsed,
    )
    add_nodes(inner, region.nodes, depth + 1)
    results = [argument(inner, output) for output in region.outputs]
    wanted = [name for output in node.outputs for name in result_names((output,))]
    if len(results) != len(wanted):
        raise malformed("a region without gradients gives other results than are used")
    for name, result in zip(wanted, results, strict=True):
        if name is not None:
            outer[name] = result if enabled else detached(builder, result)


def detached(builder: GraphBuilder, value: fx.Node) -> fx.Node:
    """`value` without its gradient, where it could have one."""
    meta = value.meta["val"]
    if not isinstance(meta, TensorMeta) or not (meta.dtype.is_floating_point or meta.dtype.is_complex):
        return value
    node = builder.graph.call_function(torch.ops.aten.detach.default, (value,))
    node.meta["val"] = meta
    return node


def possible_modules(names: Mapping[str, object], called: tuple[schema.ModuleCall, ...]) -> frozenset[str]:
    """Names under which a layer without tensors may stand: those of modules, and of no tensor or part of one."""
    return frozenset(call.fqn for call in called if is_qualified_name(call.fqn) and not taken(call.fqn, names))


def taken(module: str, names: Mapping[str, object]) -> bool:
    """Whether `module`, or something that it would stand in, is a tensor."""
    parts = module.split(".")
    return any(".".join(parts[:end]) in names for end in range(1, len(parts) + 1))
