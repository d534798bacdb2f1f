"""Surgery on every architecture: exactly the original with those units at zero; it trains on, and exports again."""

import functools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.architectures import ARCHITECTURES, ARCHIVES, export, exported, quiet, specimen
from tests.reference.groups import in_double, zeroed_outputs
from workers.formats.pt2_reader import read_pt2
from workers.graph.cost import graph_cost
from workers.graph.groups import Groups, find_groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.lifting import lift
from workers.graph.surgery import remove

PRUNABLE = [name for name in ARCHITECTURES if name != "lstm"]  # whose every channel is pinned


class GroupedQueries(nn.Module):
    """(B, T, 16) -> (B, 5): fused grouped-query attention with norms over the width of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 32)
        self.q, self.k, self.v = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16)
        self.q_norm, self.k_norm = nn.RMSNorm(8), nn.RMSNorm(8)
        self.out, self.head = nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (part(x).unflatten(-1, (-1, 8)).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, enable_gqa=True)
        return self.head((x + self.out(y.transpose(1, 2).flatten(2))).mean(1))


class BiasedScores(nn.Module):
    """(B, 9, 16) -> (B, 5): einsums, a learned bias for each head and pair of places, as in T5 and Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(16, 32), nn.Linear(32, 96)
        self.table = nn.Parameter(torch.randn(17, 4))
        self.register_buffer("offsets", torch.arange(9)[:, None] - torch.arange(9)[None, :] + 8)
        self.out, self.head = nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(x).view(x.shape[0], 9, 3, 4, 8).unbind(2)
        bias = self.table[self.offsets].permute(2, 0, 1).unsqueeze(0)
        scores = torch.einsum("bthd,bshd->bhts", q, k) / 8**0.5 + bias
        y = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).flatten(2)
        return self.head((x + self.out(y)).mean(1))


class PaddedShortcut(nn.Module):
    """(B, 3, 8, 8) -> (B, 5): a shortcut whose new channels are zeros, as in the first CIFAR ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.same, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)) + self.down(x)
        return self.head((x + self.same(x.relu())).mean((2, 3)))


class Rearranged(nn.Module):
    """(B, 16) -> (B, 5): gated units, channels to places, shuffled channels, a grouped transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.gated, self.wide = nn.Linear(16, 40), nn.Linear(20, 64)
        self.conv, self.up = nn.Conv2d(4, 8, 3, padding=1), nn.ConvTranspose2d(8, 8, 2, 2, groups=4)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(F.glu(self.gated(x), -1)).view(-1, 16, 2, 2)
        x = self.conv(F.pixel_shuffle(x, 2))
        x = self.up(torch.stack([x[:, :4], x[:, 4:]], 2).flatten(1, 2))
        return self.head(x.amax((2, 3)))


class TokenMixer(nn.Module):
    """(B, 3, 16, 16) -> (B, 5): dense layers over places, beside the channels that pass, and a frozen scale."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.tokens = nn.Conv2d(3, 12, 4, 4), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)
        self.register_buffer("scale", torch.rand(12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x) * self.scale[None, :, None, None]
        x = x.flatten(2) + self.tokens(x.flatten(2)).tanh()
        x = x.transpose(1, 2)
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


EXTRA: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "grouped_queries": (GroupedQueries, (3, 8, 16)),
    "biased_scores": (BiasedScores, (3, 9, 16)),
    "padded_shortcut": (PaddedShortcut, (3, 3, 8, 8)),
    "rearranged": (Rearranged, (3, 16)),
    "token_mixer": (TokenMixer, (3, 3, 16, 16)),
}


@functools.cache
def read(name: str) -> tuple[LayerGraph, tuple[Tensor, ...]]:
    """A network of the zoo or of the above in float64, and inputs for it."""
    if name in EXTRA:
        build, shape = EXTRA[name]
        torch.manual_seed(0)
        inputs: tuple[Tensor, ...] = (torch.randn(shape),)
        path = export(build(), inputs, Path(ARCHIVES.name) / f"{name}.pt2")
    else:
        inputs, path = specimen(name)[1], exported(name)
    wide = tuple(given.double() if given.is_floating_point() else given for given in inputs)
    return in_double(lift(read_pt2(path))), wide


@functools.cache
def groups_of(name: str) -> Groups:
    return find_groups(read(name)[0])


def half(groups: Groups, seed: int = 0) -> dict[str, list[int]]:
    """Half of the units of every group."""
    draw = random.Random(seed)
    return {name: draw.sample(range(group.num_units), group.num_units // 2) for name, group in groups.items()}


def first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


@pytest.mark.parametrize("name", [*PRUNABLE, *EXTRA])
def test_a_pruned_network_is_the_original_with_those_units_at_zero(name: str) -> None:
    network, inputs = read(name)
    groups = groups_of(name)
    selection = half(groups)
    assert any(selection.values())
    pruned = remove(network, selection, groups)
    with torch.no_grad():
        expected, found = first(zeroed_outputs(network, groups, selection, inputs)), first(pruned(*inputs))
        assert not torch.allclose(expected, first(network(*inputs)))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    cost, promised = graph_cost(pruned), groups.size_without(selection)
    assert (cost.parameters, cost.macs) == (promised.parameters, promised.macs)
    assert cost.parameters < groups.size.parameters


@pytest.mark.parametrize("name", [*PRUNABLE, *EXTRA])
def test_a_pruned_network_trains_and_exports_with_its_dynamic_batch(name: str) -> None:
    network, inputs = read(name)
    pruned = remove(network, half(groups_of(name)), groups_of(name))
    pruned.train()
    optimizer = torch.optim.SGD(pruned.parameters(), lr=1e-3)
    outputs = pruned(*inputs)
    sum(output.pow(2).mean() for output in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())
    before = [parameter.detach().clone() for parameter in pruned.parameters()]
    optimizer.step()
    assert any(not torch.equal(old, new) for old, new in zip(before, pruned.parameters(), strict=True))
    pruned.eval()
    with quiet():
        dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
        program = torch.export.export(pruned, inputs, dynamic_shapes=dynamic)
    more = tuple(torch.cat([given, given[:2]]) for given in inputs)
    with torch.no_grad():
        torch.testing.assert_close(first(program.module()(*more)), first(pruned(*more)))
        torch.testing.assert_close(first(pruned(*more))[: len(inputs[0])], first(pruned(*inputs)))


def test_lengths_that_were_free_stay_free(tmp_path: Path) -> None:
    network, (given,) = specimen("torch_encoder")
    with quiet():
        free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        torch.export.save(torch.export.export(network.eval(), (given,), dynamic_shapes=(free,)), tmp_path / "free.pt2")
    original = in_double(lift(read_pt2(tmp_path / "free.pt2")))
    groups = find_groups(original)
    heads = {name: [0, 2] for name, group in groups.items() if group.kind == "heads"}
    assert heads
    pruned = remove(original, heads, groups)
    for name in heads:  # a head whose output nothing reads is as good as one that is not there
        for one in groups[name].members:
            if one.tensor.endswith("out_proj.weight"):
                original.get_parameter(one.tensor).data[:, one.indices[[0, 2]].ravel()] = 0
    longer = torch.randn(5, 11, 16, dtype=torch.float64)
    torch.testing.assert_close(pruned(longer), original(longer))


def test_surgery_leaves_the_original_the_names_and_the_kinds_of_layers_as_they_were() -> None:
    network, inputs = read("vit")
    before, state = network(*inputs), {name: value.clone() for name, value in network.state_dict().items()}
    pruned = remove(network, half(find_groups(network)))
    assert torch.equal(network(*inputs), before)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert list(pruned.state_dict()) == list(state)
    kinds = [[type(module).__name__ for module in one.modules()] for one in (pruned, network)]
    assert kinds[0] == kinds[1]
    assert len(pruned.graph.nodes) == len(network.graph.nodes)


def test_layers_say_their_new_sizes() -> None:
    network, _ = read("unet")
    pruned = remove(network, {"down1": [0, 3], "up1": [1]})
    assert repr(pruned.down1) == "Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))"
    assert repr(pruned.norm1) == "GroupNorm(2, 4, eps=1e-05, affine=True, bias=True)"
    assert repr(pruned.up1) == "ConvTranspose2d(32, 7, kernel_size=(2, 2), stride=(2, 2))"
    assert repr(pruned.out1) == "Conv2d(11, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))"


def test_tied_weights_stay_tied() -> None:
    network, _ = read("gpt")
    pruned = remove(network, {"embed": [0, 1, 2]})
    assert pruned.embed.weight is pruned.head.weight
    assert tuple(pruned.embed.weight.shape) == (50, 21)


def test_a_pruned_network_can_be_pruned_again() -> None:
    network, inputs = read("torch_encoder")
    once = remove(network, half(find_groups(network)))
    groups = find_groups(once)
    selection = half(groups, seed=1)
    twice = remove(once, selection, groups)
    with torch.no_grad():
        torch.testing.assert_close(twice(*inputs), zeroed_outputs(once, groups, selection, inputs))


def test_a_removal_that_leaves_nothing_is_refused() -> None:
    network, _ = read("lenet")
    with pytest.raises(ValueError, match=r"nothing would be left of axis 0 of conv1\.weight; leave at least one"):
        remove(network, {"conv1": range(6)})


def test_removing_nothing_changes_nothing() -> None:
    network, inputs = read("llama")
    pruned = remove(network, {})
    assert torch.equal(pruned(*inputs), network(*inputs))
    assert [str(node) for node in pruned.graph.nodes] == [str(node) for node in network.graph.nodes]
