"""Costs of graphs: MACs as torch's counter counts them on the eager network, activations by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.architectures import ARCHITECTURES, BATCH, exported, specimen
from workers.evaluation.cost import MATRIX_VECTOR_FLOPS, measure_cost, unfused
from workers.formats.pt2_reader import read_pt2
from workers.graph.cost import graph_cost
from workers.graph.lifting import lift


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_macs_and_parameters_are_those_of_the_eager_network(name: str) -> None:
    network, inputs = specimen(name)
    counter = FlopCounterMode(display=False, custom_mapping=MATRIX_VECTOR_FLOPS)
    with unfused(), torch.no_grad(), counter:
        network.eval()(*inputs)
    cost = graph_cost(lift(read_pt2(exported(name, training=True))))
    assert cost.macs == counter.get_total_flops() // (2 * BATCH)
    assert cost.parameters == sum(weight.numel() for weight in network.parameters())


def test_the_cost_of_a_graph_is_the_measured_cost_of_the_network() -> None:
    network, _ = specimen("resnet8")
    ours, measured = graph_cost(lift(read_pt2(exported("resnet8")))), measure_cost(network, (3, 16, 16))
    assert (ours.parameters, ours.macs, ours.bytes) == (measured.parameters, measured.macs, measured.bytes)


def test_every_layer_has_its_share_of_the_macs() -> None:
    cost = graph_cost(lift(read_pt2(exported("mlp"))))
    assert sorted(cost.macs_by_node.values()) == [24 * 10, 32 * 24, 48 * 32]
    assert sum(cost.macs_by_node.values()) == cost.macs


def test_the_peak_is_where_two_activations_meet() -> None:
    """The perceptron is widest where its input of 48 and its first layer of 32 floats are both alive."""
    cost = graph_cost(lift(read_pt2(exported("mlp"))))
    assert cost.peak_activation_bytes == 4 * (48 + 32)


def test_a_view_takes_no_memory_of_its_own() -> None:
    """LeNet's largest moment is the first convolution's output with its tanh; the later view adds nothing."""
    cost = graph_cost(lift(read_pt2(exported("lenet"))))
    assert cost.peak_activation_bytes == 4 * 2 * (6 * 16 * 16)
