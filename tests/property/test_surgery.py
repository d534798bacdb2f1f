"""Surgery on networks that nobody wrote: random graphs, random units, exactly the original with those at zero."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.architectures import export
from tests.reference.groups import in_double, zeroed_outputs
from workers.formats.pt2_reader import read_pt2
from workers.graph.cost import graph_cost
from workers.graph.groups import Groups, find_groups
from workers.graph.lifting import lift
from workers.graph.surgery import remove

SIDE = 4


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class Shuffle(nn.Module):
    """Channels interleaved by a view."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], 2, x.shape[1] // 2, SIDE, SIDE).transpose(1, 2).reshape(x.shape)


class Dense(nn.Module):
    """What comes in, beside what is made of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.grow = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.grow(x)], 1)


class Residual(nn.Module):
    """A shortcut around a norm and two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.first, self.second = nn.Conv2d(channels, 6, 1), nn.Conv2d(6, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(self.norm(x).relu()).relu())


class Halves(nn.Module):
    """One half of the channels gates the other."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return left * right.tanh()


class ChannelsLast(nn.Module):
    """A layer norm and a dense layer over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Every place looks at every other; written out or fused, with a shortcut."""

    def __init__(self, channels: int, *, fused: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.fused = nn.Linear(channels, 24), nn.Linear(8, channels), fused

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).view(x.shape[0], SIDE * SIDE, 3, 2, 4).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.transpose(-2, -1) / 2, -1) @ v
        tokens = tokens + self.out(y.transpose(1, 2).reshape(x.shape[0], SIDE * SIDE, -1))
        return tokens.transpose(1, 2).unflatten(2, (SIDE, SIDE))


# Name -> (the block for so many channels, how many come out). Channels are always a multiple of four.
BLOCKS: dict[str, Any] = {
    "convolution": lambda c: (nn.Conv2d(c, 8, 3, padding=1), 8),
    "wide convolution": lambda c: (nn.Conv2d(c, 12, 1, bias=False), 12),
    "depthwise": lambda c: (nn.Conv2d(c, 2 * c, 3, padding=1, groups=c), 2 * c) if c < 16 else (nn.ReLU(), c),
    "grouped": lambda c: (nn.Conv2d(c, 8, 3, padding=1, groups=4), 8),
    "transposed": lambda c: (nn.ConvTranspose2d(c, 8, 3, padding=1), 8),
    "batch norm": lambda c: (nn.BatchNorm2d(c), c),
    "group norm": lambda c: (nn.GroupNorm(c // 2, c), c),
    "pool": lambda c: (nn.MaxPool2d(3, 1, 1), c),
    "gate": lambda c: (Gate(c), c),
    "shuffle": lambda c: (Shuffle(), c),
    "dense": lambda c: (Dense(c), c + 4),
    "residual": lambda c: (Residual(c), c),
    "halves": lambda c: (Halves(), c // 2) if c % 8 == 0 else (nn.SiLU(), c),
    "channels last": lambda c: (ChannelsLast(c), c),
    "attention": lambda c: (Attention(c, fused=True), c),
    "written-out attention": lambda c: (Attention(c, fused=False), c),
}


def build(names: list[str]) -> nn.Module:
    """The blocks in a row behind a stem, then means and a classifier."""
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1)]
    channels = 8
    for name in names:
        block, channels = BLOCKS[name](channels)
        layers.append(block)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))


def draw_units(data: st.DataObject, groups: Groups) -> dict[str, list[int]]:
    """Some units of every group, never all that one tensor has."""
    return {
        name: data.draw(st.lists(st.integers(0, group.num_units - 1), unique=True, max_size=group.num_units // 2))
        for name, group in groups.items()
    }


@given(names=st.lists(st.sampled_from(sorted(BLOCKS)), min_size=2, max_size=6), data=st.data())
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_a_pruned_network_is_exactly_the_original_with_those_units_at_zero(
    names: list[str], data: st.DataObject
) -> None:
    inputs = (torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)),)
    with tempfile.TemporaryDirectory() as folder:
        network = in_double(lift(read_pt2(export(build(names), inputs, Path(folder) / "network.pt2"))))
    groups = find_groups(network)
    assert groups
    wide = (inputs[0].double(),)
    for _ in range(3):
        selection = draw_units(data, groups)
        pruned = remove(network, selection, groups)
        with torch.no_grad():
            expected = zeroed_outputs(network, groups, selection, wide)
            torch.testing.assert_close(pruned(*wide), expected, rtol=1e-9, atol=1e-9)
        cost, promised = graph_cost(pruned), groups.size_without(selection)
        assert (cost.parameters, cost.macs) == (promised.parameters, promised.macs)
