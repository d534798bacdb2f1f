"""Shapes and dtypes by computing the graph on the meta device: no values, no memory.

What an archive says about its tensors is a claim. Every analysis here stands on shapes, so they are computed anew
and compared; and after surgery they are computed again.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from service.contract.errors import InputRejected
from workers.graph.layer_graph import LayerGraph
from workers.graph.module_tree import own_tensors
from workers.graph.tensor_meta import SymbolicSize, TensorMeta


class Recorder(fx.Interpreter):
    """Runs a graph node by node and keeps what each gave."""

    def __init__(self, network: LayerGraph, after_node: Callable[[fx.Node], None]) -> None:
        super().__init__(network, garbage_collect_values=False)
        self.results: dict[fx.Node, Any] = {}
        self.after_node = after_node

    def run_node(self, n: fx.Node) -> Any:
        try:
            result = super().run_node(n)
        except InputRejected:
            raise
        except Exception as error:
            raise InputRejected(inconsistent(n, str(error).partition("\n")[0]), code="graph_inconsistent") from error
        self.results[n] = result
        self.after_node(n)
        return result


class Recorded(nn.Module):
    """A module whose forward is the recorder's, so that tensors can be swapped for meta ones."""

    def __init__(self, network: LayerGraph, after_node: Callable[[fx.Node], None]) -> None:
        super().__init__()
        self.network = network
        self.recorder = Recorder(network, after_node)

    def forward(self, *inputs: Tensor) -> Any:
        return self.recorder.run(*inputs)


def propagate(network: LayerGraph, after_node: Callable[[fx.Node], None] = lambda _: None) -> Mapping[fx.Node, Any]:
    """What every node gives for the example inputs: meta tensors in place of tensors, numbers as they are.

    `after_node` is called with each node when it has been computed.
    """
    recorded = Recorded(network, after_node)
    inputs = tuple(
        torch.empty(given.example_shape, dtype=given.dtype, device="meta") for given in network.inputs.values()
    )
    with torch.no_grad():
        functional_call(recorded, meta_tensors(recorded), inputs, tie_weights=False)
    return recorded.recorder.results


def meta_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A meta tensor for each tensor, under one name for each module that holds it.

    A module that stands in two places must be named once: torch would swap its tensors twice, and give back the
    swapped ones.
    """
    return {
        f"{name}.{leaf}": tensor.detach().to("meta")
        for name, holder in module.named_modules()
        for leaf, tensor in own_tensors(holder).items()
    }


def check_shapes(network: LayerGraph) -> None:
    """`InputRejected` (graph_inconsistent) where a node's `meta["val"]` is not what it computes."""
    for node, result in propagate(network).items():
        claimed = node.meta.get("val")
        if isinstance(claimed, TensorMeta) and not agrees(claimed, result):
            found = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else "no tensor"
            reason = f"the archive records {claimed.dtype} {claimed.example_shape}, but it computes {found}"
            raise InputRejected(inconsistent(node, reason), code="graph_inconsistent")


def agrees(claimed: TensorMeta, result: object) -> bool:
    return isinstance(result, Tensor) and tuple(result.shape) == claimed.example_shape and result.dtype == claimed.dtype


def inconsistent(node: fx.Node, reason: str) -> str:
    return f"The graph cannot be computed at {node.name} ({node.target}): {reason}. Export the model again."


def refresh_shapes(network: LayerGraph) -> None:
    """Record the shapes that `network` has now; a size that was symbolic stays so."""
    for node, result in propagate(network).items():
        if isinstance(result, Tensor):
            node.meta["val"] = refreshed(node.meta.get("val"), result)
        elif isinstance(result, (tuple, list)) and node.op == "call_function":
            before = node.meta.get("val")
            claims = before if isinstance(before, tuple) and len(before) == len(result) else (None,) * len(result)
            node.meta["val"] = tuple(
                refreshed(claim, part) if isinstance(part, Tensor) else None
                for claim, part in zip(claims, result, strict=True)
            )


def refreshed(before: object, result: Tensor) -> TensorMeta:
    """The meta of `result`, with the symbols that `before` had in the same places and with the same values."""
    old = before.shape if isinstance(before, TensorMeta) and len(before.shape) == result.dim() else tuple(result.shape)
    shape = tuple(
        size if isinstance(size, SymbolicSize) and size.hint == now else now
        for size, now in zip(old, result.shape, strict=True)
    )
    return TensorMeta(shape, result.dtype)
