"""Shapes are computed, not believed."""

import dataclasses

import pytest
import torch
from torch import nn

from service.contract.errors import InputRejected
from tests.architectures import exported
from workers.formats.pt2_reader import read_pt2
from workers.graph.lifting import lift
from workers.graph.propagation import check_shapes, propagate, refresh_shapes
from workers.graph.tensor_meta import SymbolicSize, TensorMeta


def test_a_wrong_claim_about_a_shape_is_refused() -> None:
    program = read_pt2(exported("mlp"))
    node = next(node for node in program.graph.nodes if node.op == "call_function")
    node.meta["val"] = dataclasses.replace(node.meta["val"], shape=(3, 99))
    with pytest.raises(InputRejected, match="99") as refusal:
        lift(program)
    assert refusal.value.fault().code == "graph_inconsistent"


def test_a_wrong_claim_about_a_dtype_is_refused() -> None:
    network = lift(read_pt2(exported("mlp")))
    node = network.graph.find_nodes(op="call_module")[0]
    node.meta["val"] = TensorMeta(node.meta["val"].shape, torch.float64)
    with pytest.raises(InputRejected, match=r"float64.*float32"):
        check_shapes(network)


def test_shapes_are_refreshed_after_a_layer_shrank() -> None:
    network = lift(read_pt2(exported("mlp")))
    first, second = network.get_submodule("layers.0"), network.get_submodule("layers.1")
    first.weight, first.bias = nn.Parameter(first.weight[:5]), nn.Parameter(first.bias[:5])
    second.weight = nn.Parameter(second.weight[:, :5])
    with pytest.raises(InputRejected):
        check_shapes(network)
    refresh_shapes(network)
    check_shapes(network)
    batch, width = network.graph.find_nodes(op="call_module")[0].meta["val"].shape
    assert isinstance(batch, SymbolicSize)
    assert width == 5


def test_propagation_computes_no_values_and_changes_nothing() -> None:
    network = lift(read_pt2(exported("resnet8", training=True))).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = propagate(network)
    assert all(result.is_meta for result in found.values() if isinstance(result, torch.Tensor))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
