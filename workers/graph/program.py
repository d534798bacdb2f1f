"""A network as it was read: a graph of ATen calls and the tensors that it holds, before any layer is made of it.

This is what a reader hands to `lift` (lifting.py). The graph's nodes are

    placeholder     one per input tensor, in the order of the original's flattened arguments
    get_attr        a parameter, buffer or constant; the target is its original fully qualified name (FQN)
    call_function   an overload of `torch.ops.aten`, `operator.getitem` on one with several results,
                    or integer arithmetic on sizes (the functions of Python's `operator`)
    output          one tensor, or a tuple of tensors

Every node has `meta["val"]` (see tensor_meta.py), and where the exporter said so `meta["module"]`, the FQN of the
module in whose forward the operator was called.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from workers.graph.tensor_meta import SymbolRange


@dataclass(frozen=True)
class HeldTensor:
    """A tensor that the network owns; `persistent` ones stand in its state dict."""

    value: Tensor  # an nn.Parameter for a parameter
    persistent: bool = True


@dataclass(frozen=True)
class GraphProgram:
    """A graph and its tensors by FQN; names of one shared tensor hold the same object."""

    graph: fx.Graph
    tensors: Mapping[str, HeldTensor]  # parameters first, then buffers and constants, each in original order
    symbols: Mapping[str, SymbolRange]
