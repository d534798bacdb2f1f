"""Scores of weights alone, against formulas written out for networks whose layers are known by name."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from tests.architectures import ARCHIVES, export
from tests.unit.pruning.subjects import subject
from workers.formats.pt2_reader import read_pt2
from workers.graph.groups import find_groups
from workers.graph.lifting import lift
from workers.pruning.criteria.magnitude import batchnorm_scale, magnitude, random_order


def by_mean(parts: list[Tensor]) -> Tensor:
    mean = sum(part.double() for part in parts) / len(parts)
    return mean / mean.mean()


def outputs_of(layer: nn.Module, power: int) -> Tensor:
    return layer.weight.detach().abs().pow(power).flatten(1).sum(1)


def inputs_of(layer: nn.Module, power: int) -> Tensor:
    return layer.weight.detach().abs().pow(power).transpose(0, 1).flatten(1).sum(1)


@pytest.mark.parametrize("power", [1, 2])
def test_a_hidden_layer_is_what_makes_it_and_what_reads_it(power: Literal[1, 2]) -> None:
    case = subject("mlp")
    layers, head = case.network.get_submodule("layers"), case.network.get_submodule("head")
    found = magnitude(case.network, case.groups, power).values
    modules = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    first = [outputs_of(modules[0], power), inputs_of(modules[1], power)]
    scales = {
        member.tensor: case.network.get_parameter(member.tensor).detach().abs().pow(power)
        for member in case.groups["layers.0"].members
        if member.tensor.endswith("weight")
        and isinstance(case.network.get_submodule(member.tensor[:-7]), nn.BatchNorm1d)
    }
    torch.testing.assert_close(found["layers.0"], by_mean([*first, *scales.values()]))
    assert found["layers.1"].mean() == pytest.approx(1)
    assert head.weight.shape[1] == len(found["layers.1"])


@pytest.mark.parametrize("power", [1, 2])
def test_a_residual_stream_is_all_that_writes_it_reads_it_and_scales_it(power: Literal[1, 2]) -> None:
    case = subject("resnet8")
    get = case.network.get_submodule
    found = magnitude(case.network, case.groups, power).values["conv1"]
    made = [outputs_of(get(name), power) for name in ("conv1", "layer1.0.conv2")]
    read = [inputs_of(get(name), power) for name in ("layer1.0.conv1", "layer2.0.conv1", "layer2.0.downsample.0")]
    scales = [get(name).weight.detach().abs().pow(power) for name in ("bn1", "layer1.0.bn2")]
    torch.testing.assert_close(found, by_mean([*made, *read, *scales]))


def test_a_unit_of_several_indices_has_their_sum() -> None:
    case = subject("lenet")
    get = case.network.get_submodule
    found = magnitude(case.network, case.groups, 2).values["conv2"]
    flattened = inputs_of(get("fc1"), 2).reshape(12, 16).sum(1)
    torch.testing.assert_close(found, by_mean([outputs_of(get("conv2"), 2), flattened]))


class Depthwise(nn.Module):
    """(B, 3, 8, 8) -> (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.own, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.own(self.first(x)).relu()).mean((2, 3))


def test_filters_of_a_depthwise_convolution_do_not_count() -> None:
    torch.manual_seed(0)
    path = export(Depthwise(), (torch.randn(2, 3, 8, 8),), Path(ARCHIVES.name) / "depthwise.pt2")
    network = lift(read_pt2(path))
    found = magnitude(network, find_groups(network), 2).values["first"]
    expected = [outputs_of(network.get_submodule("first"), 2), inputs_of(network.get_submodule("last"), 2)]
    torch.testing.assert_close(found, by_mean(expected))


def test_batch_norm_scales_are_averaged_and_what_has_none_is_judged_by_l2() -> None:
    resnet, lenet = subject("resnet8"), subject("lenet")
    found = batchnorm_scale(resnet.network, resnet.groups)
    scales = [resnet.network.get_submodule(name).weight.detach().abs() for name in ("bn1", "layer1.0.bn2")]
    torch.testing.assert_close(found.values["conv1"], by_mean(scales))
    assert found.notes == ()
    without = batchnorm_scale(lenet.network, lenet.groups)
    torch.testing.assert_close(without.values, magnitude(lenet.network, lenet.groups, 2).values)
    assert "conv1, conv2, fc1" in without.notes[0]


def test_weights_that_are_all_zero_rank_nobody() -> None:
    zeros = Depthwise()
    for parameter in zeros.parameters():
        nn.init.zeros_(parameter)
    network = lift(read_pt2(export(zeros, (torch.randn(2, 3, 8, 8),), Path(ARCHIVES.name) / "zeros.pt2")))
    assert magnitude(network, find_groups(network), 2).values["first"].tolist() == [1.0] * 6


def test_a_random_order_is_that_of_its_seed() -> None:
    groups = subject("resnet8").groups
    first, again, other = random_order(groups, 1), random_order(groups, 1), random_order(groups, 2)
    assert all(torch.equal(first.values[name], again.values[name]) for name in groups)
    assert not any(torch.equal(first.values[name], other.values[name]) for name in groups)
    assert all(((value > 0) & (value < 1)).all() for value in first.values.values())
