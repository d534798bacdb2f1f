"""Decomposed operators become whole again.

`ExportedProgram.run_decompositions()` takes layers apart: a convolution of any kind becomes `convolution`, a linear
layer `addmm` with a transposed weight, a norm one with three results of which the first is used. Networks that
come that way (in evaluation mode; in training mode their batch norms and dropouts are beyond recognition, and are
refused by the table of operators) are put together before lifting looks for layers.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from workers.graph.calls import arguments_of, is_aten, operator_name

aten = torch.ops.aten
Whole = tuple["OpOverload[..., Any]", tuple[Any, ...]]


def recompose(graph: fx.Graph) -> None:
    """Rewrite what `WHOLE` knows, in place; the parts that nothing uses any more are left to be dropped."""
    for node in list(graph.nodes):
        rule = WHOLE.get(operator_name(node)) if is_aten(node) else None
        result = used_result(node) if rule is not None else None
        whole = rule(arguments_of(node)) if rule is not None and result is not None else None
        if whole is None or result is None:
            continue
        with graph.inserting_before(node):
            replacement = graph.call_function(whole[0], whole[1])
        replacement.meta = dict(result.meta)
        result.replace_all_uses_with(replacement)


def used_result(node: fx.Node) -> fx.Node | None:
    """The node of an operator's one result that is used: itself, or its first; None where others are used too."""
    if not isinstance(node.meta.get("val"), tuple):
        return node
    used = [user for user in node.users if user.users]
    only_first = all(user.target is operator.getitem and user.args[1] == 0 for user in used)
    return used[0] if len(used) == 1 and only_first else None


def batch_norm(given: dict[str, Any]) -> Whole:
    owned = (given["input"], given["weight"], given["bias"], given["running_mean"], given["running_var"])
    return aten.batch_norm.default, (*owned, False, given["momentum"], given["eps"], False)


def layer_norm(given: dict[str, Any]) -> Whole:
    order = ("input", "normalized_shape", "weight", "bias", "eps")
    return aten.layer_norm.default, tuple(given[name] for name in order)


def group_norm(given: dict[str, Any]) -> Whole:
    order = ("input", "group", "weight", "bias", "eps")
    return aten.group_norm.default, tuple(given[name] for name in order)


CONVOLUTIONS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
TRANSPOSED = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}


def convolution(given: dict[str, Any]) -> Whole | None:
    owned, dimensions = (given["input"], given["weight"], given["bias"]), len(given["stride"])
    if given["transposed"]:
        options = [given[name] for name in ("stride", "padding", "output_padding", "groups", "dilation")]
        return TRANSPOSED[dimensions], (*owned, *options)
    options = [given[name] for name in ("stride", "padding", "dilation", "groups")]
    return CONVOLUTIONS[dimensions], (*owned, *options)


def transposed_weight(matrix: fx.Node) -> fx.Node | None:
    """The free tensor w of `permute(w, [1, 0])` or `t(w)`."""
    turned = is_aten(matrix, "t") or (is_aten(matrix, "permute") and list(matrix.args[1]) == [1, 0])  # type: ignore[arg-type]  # permute's second argument is a list
    source = matrix.all_input_nodes[0] if turned else None
    return source if source is not None and source.op == "get_attr" else None


def biased_product(given: dict[str, Any]) -> Whole | None:
    weight = transposed_weight(given["mat2"])
    plain = given["beta"] == 1 and given["alpha"] == 1 and given["self"].op == "get_attr"
    if weight is None or not plain or len(given["self"].meta["val"].shape) != 1:
        return None
    return aten.linear.default, (given["mat1"], weight, given["self"])


def product(given: dict[str, Any]) -> Whole | None:
    weight = transposed_weight(given["mat2"])
    return None if weight is None else (aten.linear.default, (given["self"], weight))


WHOLE: dict[str, Callable[[dict[str, Any]], Whole | None]] = {
    "_native_batch_norm_legit_no_training": batch_norm,
    "native_layer_norm": layer_norm,
    "native_group_norm": group_norm,
    "convolution": convolution,
    "addmm": biased_product,
    "mm": product,
}
