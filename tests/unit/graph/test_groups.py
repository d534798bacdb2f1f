"""Dependency groups: what goes together, what each unit carries, and what is pinned by whom."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.architectures import ARCHITECTURES, export, exported
from tests.reference.groups import components as reachable
from tests.reference.groups import is_rectangle
from workers.formats.pt2_reader import read_pt2
from workers.graph.components import Components
from workers.graph.cost import graph_cost
from workers.graph.groups import Group, Groups, Member, find_groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.lifting import lift
from workers.graph.rectangles import equal_labels, resolve
from workers.graph.rules import RULES, read_network
from workers.graph.surgery import remove


@functools.cache
def network_of(name: str) -> LayerGraph:
    return lift(read_pt2(exported(name)))


@functools.cache
def groups_of(name: str) -> Groups:
    return find_groups(network_of(name))


def lifted(network: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> LayerGraph:
    return lift(read_pt2(export(network, inputs, folder / "network.pt2")))


def member(group: Group, tensor: str, axis: int) -> Member:
    return next(one for one in group.members if (one.tensor, one.axis) == (tensor, axis))


def tensors(group: Group) -> set[tuple[str, int]]:
    return {(one.tensor, one.axis) for one in group.members}


# Components and rectangles ----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60))
@settings(max_examples=100, deadline=None)
def test_components_are_what_can_be_reached_by_equalities(edges: Sequence[tuple[int, int]]) -> None:
    components = Components(31)
    left, right = (np.array([edge[side] for edge in edges], dtype=np.int64) for side in (0, 1))
    components.connect(left, right)
    expected = {frozenset(component) for component in reachable(31, edges)}
    found = {frozenset(np.flatnonzero(components.roots == root).tolist()) for root in set(components.roots.tolist())}
    assert found == expected
    assert all(components.roots[min(component)] == min(component) for component in found)


@pytest.mark.parametrize("name", ["conv1d", "shufflenet", "unet"])
def test_equal_labels_of_a_network_are_what_can_be_reached_by_its_equalities(name: str) -> None:
    ledger = read_network(network_of(name)).ledger
    edges = [
        pair
        for left, right in ledger.equalities
        for pair in zip(*(side.ravel().tolist() for side in np.broadcast_arrays(left, right)), strict=True)
    ]
    roots = equal_labels(ledger).roots
    for component in reachable(ledger.num_labels, edges):
        assert len(set(roots[list(component)].tolist())) == 1
    assert len(set(roots.tolist())) == len(reachable(ledger.num_labels, edges))


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("name", ["shufflenet", "torch_encoder", "llama", "bert"])
def test_any_units_of_a_partition_leave_rectangles(name: str, *, heads: bool) -> None:
    ledger = read_network(network_of(name)).ledger
    roots = resolve(ledger, equal_labels(ledger), heads=heads)
    draw = np.random.default_rng(0)
    for _ in range(5):
        gone = draw.random(ledger.num_labels) < 0.3
        gone[0] = False
        for rectangle in ledger.rectangles:
            assert is_rectangle(gone[roots[rectangle.labels]])


def test_every_rule_is_for_an_operator_of_torch() -> None:
    assert [name for name in RULES if not hasattr(torch.ops.aten, name)] == []


# Which units there are --------------------------------------------------------------------------------------------


def test_a_residual_network_has_one_group_for_each_stage_and_one_inside_each_block() -> None:
    groups = groups_of("resnet8")
    assert [group.num_units for group in groups.values()] == [16, 16, 32, 32, 64, 64]
    stream = tensors(groups["conv1"])
    assert {("conv1.weight", 0), ("bn1.running_var", 0), ("layer1.0.conv2.weight", 0)} <= stream
    assert {("layer1.0.conv1.weight", 1), ("layer2.0.conv1.weight", 1)} <= stream


def test_a_flattened_channel_takes_all_its_places_with_it() -> None:
    flattened = member(groups_of("lenet")["conv2"], "fc1.weight", 1)
    assert flattened.indices.shape == (12, 16)
    assert flattened.indices[1].tolist() == list(range(16, 32))


def test_a_depthwise_convolution_loses_what_it_reads_and_writes_together() -> None:
    wide = groups_of("mobilenet_v2")["blocks.0.expand.0"]
    assert {("blocks.0.depthwise.0.weight", 0), ("blocks.0.project.0.weight", 1)} <= tensors(wide)
    assert wide.num_units == 24


def test_a_grouped_convolution_loses_whole_groups() -> None:
    inner = groups_of("resnext")["layers.0.conv1"]
    assert inner.num_units == 4
    assert member(inner, "layers.0.conv2.weight", 0).indices.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_group_norm_loses_whole_groups() -> None:
    assert member(groups_of("unet")["down1"], "norm1.weight", 0).indices.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_dense_connection_belongs_to_the_layer_that_made_it() -> None:
    groups = groups_of("densenet")
    late = member(groups["convs.0"], "convs.2.weight", 1)
    assert late.indices.ravel().tolist() == list(range(8, 14))
    assert {"stem", "convs.0", "convs.1", "convs.2", "transition"} == set(groups)


def test_squeeze_and_excitation_gates_the_channels_of_its_own_block() -> None:
    groups = groups_of("mobilenet_v3")
    assert ("blocks.0.gate.expand.weight", 0) in tensors(groups["blocks.0.expand"])
    assert groups["blocks.0.gate.reduce"].num_units == 8


def test_fused_attention_loses_all_three_parts_of_a_head() -> None:
    heads = groups_of("vit")["blocks.0.attention.qkv:heads"]
    assert heads.kind == "heads"
    assert heads.num_units == 4
    parts = member(heads, "blocks.0.attention.qkv.weight", 0).indices[1].tolist()
    assert parts == [*range(6, 12), *range(30, 36), *range(54, 60)]


def test_queries_and_keys_have_a_width_of_their_own_and_values_another() -> None:
    groups = groups_of("bert")
    scores, mixed = groups["attentions.0.query:width"], groups["attentions.0.value:width"]
    assert tensors(scores) == {
        (f"attentions.0.{part}.{leaf}", 0) for part in ("query", "key") for leaf in ("weight", "bias")
    }
    assert ("attentions.0.output.weight", 1) in tensors(mixed)
    assert member(scores, "attentions.0.key.weight", 0).indices[2].tolist() == [2, 8, 14, 20]


def test_heads_that_share_keys_go_together_and_rotary_angles_tie_none_of_them() -> None:
    groups = groups_of("llama")
    heads = groups["blocks.0.attention.q:heads"]
    assert heads.num_units == 2
    assert member(heads, "blocks.0.attention.q.weight", 0).indices[1].tolist() == list(range(12, 24))
    assert member(heads, "blocks.0.attention.k.weight", 0).indices[1].tolist() == list(range(6, 12))
    assert "blocks.0.attention.v:width" in groups
    assert "blocks.0.attention.q:width" not in groups  # the angles are for every feature of a head


def test_a_shared_tensor_is_carried_once() -> None:
    names = [one.tensor for one in groups_of("gpt")["embed"].members]
    assert "embed.weight" in names
    assert "head.weight" not in names


def test_tensors_of_integers_carry_no_channels() -> None:
    integers = {name for name, buffer in network_of("bert").named_buffers() if not buffer.is_floating_point()}
    carried = {one.tensor for group in groups_of("bert").values() for one in group.members}
    assert integers
    assert not integers & carried


# What is pinned ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"gpt"}))
def test_the_networks_outputs_are_pinned(name: str) -> None:
    groups = groups_of(name)
    outputs = {tensor for note in groups.pinned if note.reason == "the network's output" for tensor in note.tensors}
    assert outputs
    assert not any((tensor, 0) in tensors(group) for group in groups.values() for tensor in outputs)


def test_the_entries_of_an_embedding_are_no_channels_though_a_head_shares_them() -> None:
    assert not any(("embed.weight", 0) in tensors(group) for group in groups_of("gpt").values())


def test_channels_of_the_networks_input_are_pinned_by_what_reads_them() -> None:
    groups = groups_of("resnet8")
    assert not any(("conv1.weight", 1) in tensors(group) for group in groups.values())
    notes = [note for note in groups.pinned if note.reason == "reads channels that are fixed"]
    assert [(note.operator, note.num_channels, note.tensors) for note in notes] == [("conv2d", 3, ("conv1.weight",))]


class Sorted(nn.Module):
    """A network with an operator that no rule is for, behind its second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).sort(-1).values
        return self.third(x)


def test_an_operator_without_a_rule_pins_what_reaches_it_and_is_named(tmp_path: Path) -> None:
    groups = find_groups(lifted(Sorted(), (torch.randn(3, 4),), tmp_path))
    assert list(groups) == ["first"]
    notes = [note for note in groups.pinned if note.reason == "an operator without a rule"]
    assert [note.operator for note in notes] == ["sort"]
    assert "second.weight" in notes[0].tensors
    assert notes[0].num_channels == 8


class WrittenOver(nn.Module):
    """A network that writes over memory which it looks at again through another value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu())
        x[:, :4].mul_(2.0)
        return self.third(x)


def test_channels_whose_memory_is_written_over_are_pinned(tmp_path: Path) -> None:
    groups = find_groups(lifted(WrittenOver(), (torch.randn(3, 4),), tmp_path))
    assert {"mul_"} <= {note.operator for note in groups.pinned}
    assert member(groups["second"], "second.weight", 0).indices.ravel().tolist() == [4, 5, 6, 7]


def test_a_recurrent_layer_is_left_as_it_is() -> None:
    groups = groups_of("lstm")
    assert not groups
    assert "lstm" in {note.operator for note in groups.pinned}


# What a unit carries ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnext", "shufflenet", "unet", "densenet", "llama", "bert", "torch_encoder"])
def test_a_unit_carries_what_the_network_is_smaller_without_it(name: str) -> None:
    network, groups = network_of(name), groups_of(name)
    whole = graph_cost(network)
    assert (groups.size.parameters, groups.size.macs) == (whole.parameters, whole.macs)
    for group in list(groups.values())[:6]:
        without = graph_cost(remove(network, {group.name: [group.num_units - 1]}, groups))
        assert group.parameters_per_unit == whole.parameters - without.parameters
        assert group.macs_per_unit == whole.macs - without.macs


def test_means_over_channels_are_named() -> None:
    assert not any(group.statistics for group in groups_of("resnet8").values())
    statistics = groups_of("llama")["embed"].statistics
    kinds = {str(node.target) for node in network_of("llama").graph.nodes if node.name in statistics}
    assert {"norm", "aten.mean.dim"} <= kinds


def test_a_group_or_unit_that_does_not_exist_is_refused() -> None:
    groups = groups_of("lenet")
    with pytest.raises(ValueError, match="there is no group 'conv9'; the groups are conv1, conv2, fc1"):
        groups.kept({"conv9": [0]})
    with pytest.raises(ValueError, match="group conv1 has units 0 to 5, and no 6"):
        groups.kept({"conv1": [6]})


def test_masks_say_where_units_appear() -> None:
    masks = groups_of("unet").masks({"down1": [1]})
    assert masks["down1"].shape == (1, 8, 1, 1)
    assert masks["down1"].ravel().tolist() == [True, True, False, False, True, True, True, True]
    joined = [mask for name, mask in masks.items() if name.startswith("cat")]
    assert [mask.ravel().tolist()[:4] for mask in joined] == [[True, True, False, False]]
    assert groups_of("unet").masks({}) == {}
