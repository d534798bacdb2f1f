"""The lifted network: a `torch.fx.GraphModule` that owns everything the original owned.

An ordinary GraphModule keeps only what its graph mentions, and forgets the rest whenever it is copied: unused
parameters, a batch norm's counter, whether a buffer is persistent. Here the module tree is the original's, so
that its state dict is the original's, and a copy is a copy.
"""

import copy
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from workers.graph.tensor_meta import SymbolRange, TensorMeta


class LayerGraph(fx.GraphModule):
    """A graph of layers and ATen calls.

    Node kinds: placeholder; call_module (ordinary layers, and the switches of switches.py); call_function
    (overloads of torch.ops.aten, `operator.getitem`, arithmetic on sizes); get_attr (free parameters and
    buffers); output. `node.meta["val"]` is described in tensor_meta.py.
    """

    @staticmethod
    def assemble(root: nn.Module, graph: fx.Graph, symbols: Mapping[str, SymbolRange]) -> "LayerGraph":
        """A network of the tensors and layers of `root`, whose forward is `graph`."""
        module = LayerGraph(nn.Module(), fx.Graph(), class_name="LayerGraph")
        for part in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            getattr(module, part).update(getattr(root, part))
        module.graph = graph
        module.meta["symbols"] = dict(symbols)
        return module

    def __deepcopy__(self, memo: dict[int, Any]) -> "LayerGraph":
        root = nn.Module()
        for part in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            getattr(root, part).update(copy.deepcopy(getattr(self, part), memo))
        copied = LayerGraph.assemble(root, copy.deepcopy(self.graph), self.symbols)
        copied.training = self.training
        return copied

    @property
    def symbols(self) -> Mapping[str, SymbolRange]:
        """The dynamic sizes by name, with the range that the exporter vouched for."""
        found: Mapping[str, SymbolRange] = self.meta["symbols"]
        return found

    @property
    def inputs(self) -> dict[str, TensorMeta]:
        """What forward takes, in order."""
        return {str(node.target): node.meta["val"] for node in self.graph.find_nodes(op="placeholder")}

    @property
    def outputs(self) -> tuple[TensorMeta, ...]:
        """What forward returns; one tensor is returned as it is, several as a tuple."""
        returned = self.graph.output_node().args[0]
        nodes = returned if isinstance(returned, (tuple, list)) else (returned,)
        return tuple(node.meta["val"] for node in nodes if isinstance(node, fx.Node))
