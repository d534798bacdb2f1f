"""Exact ablation: fast, and what one full pass for each unit gives."""

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.architectures import ARCHITECTURES, export, exported
from tests.reference.ablation import ablated
from workers.formats.pt2_reader import read_pt2
from workers.graph.groups import Groups, find_groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.lifting import lift
from workers.graph.tensor_meta import TensorMeta
from workers.journal import Silent
from workers.pruning.ablation import consumer_updates
from workers.pruning.ablation.ablation import AblatedLogits, Work, ablated_logits, chosen_units, tiles
from workers.pruning.ablation.stacking import rows
from workers.pruning.calibration import Calibration
from workers.pruning.examples import Layout
from workers.pruning.observation import as_input
from workers.pruning.reads import Read, find_reads
from workers.pruning.replacement import fit
from workers.training.data import Scaling, Split

EXAMPLES = 7
MEMORY = 2**28
ONE_INPUT = [name for name, (_, inputs) in ARCHITECTURES.items() if len(inputs()) == 1 and name != "lstm"]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}


class Told(Silent):
    """A journal that keeps what was said."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def event(self, kind: str, data: Mapping[str, str]) -> None:  # noqa: ARG002  the protocol's
        self.texts.append(data["text"])


@functools.cache
def network_of(name: str) -> tuple[LayerGraph, Groups]:
    network = lift(read_pt2(exported(name)))
    randomise_statistics(network)
    return network, find_groups(network)


def randomise_statistics(network: nn.Module) -> None:
    """Batch norms as after training: of an untrained network they would be the identity."""
    generator = torch.Generator().manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
            layer.bias.data.normal_(0, 0.2, generator=generator)


def inputs_of(name: str) -> Calibration:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        x = torch.cat([ARCHITECTURES[name][1]()[0] for _ in range(3)])[:EXAMPLES].numpy()
    return Calibration(Split(x, None, np.arange(len(x)), Scaling()), np.arange(len(x)))


def gathered(parts: Iterator[AblatedLogits], examples: int) -> tuple[dict[tuple[str, int], Tensor], Tensor]:
    """The logits of every unit on all examples, each pair seen once; and those of the network."""
    found: dict[tuple[str, int], Tensor] = {}
    base = torch.tensor([])
    for part in parts:
        assert part.logits.shape[:2] == (len(part.units), part.rows.stop - part.rows.start)
        for unit, logits in zip(part.units.tolist(), part.logits, strict=True):
            whole = found.setdefault((part.group, unit), torch.full((examples, *logits.shape[1:]), torch.nan))
            whole = found[part.group, unit] = whole.to(logits.dtype)
            assert whole[part.rows].isnan().all(), "a pair came twice"
            whole[part.rows] = logits
        base = torch.full((examples, *part.base.shape[1:]), torch.nan).to(part.base) if not len(base) else base
        base[part.rows] = part.base
    return found, base


def some(groups: Groups, count: int, seed: int = 0) -> dict[str, list[int]]:
    generator = np.random.default_rng(seed)
    return {name: sorted(generator.permutation(group.num_units)[:count].tolist()) for name, group in groups.items()}


def compare(
    network: LayerGraph,
    groups: Groups,
    calibration: Calibration,
    ablation: str,
    *,
    memory: int = MEMORY,
    count: int = 3,
) -> Sequence[str]:
    """Check some units of every group against the naive loop; what the journal was told."""
    reads: Mapping[str, tuple[Read, ...]] = find_reads(groups)
    dtype = next(network.parameters()).dtype
    replacement = fit(network, groups, reads, calibration, ablation)
    only, told = some(groups, count), Told()
    x = as_input(network, next(calibration.batches(EXAMPLES)).x)
    parts = ablated_logits(
        network, groups, reads, calibration, replacement, memory_bytes=memory, only=only, journal=told
    )
    found, base = gathered(parts, len(x))
    tolerance = TOLERANCE[dtype]
    with torch.no_grad():
        given = network(x)
        logits = given[0] if isinstance(given, tuple) else given
        torch.testing.assert_close(base, logits, rtol=tolerance, atol=tolerance)
    for name, units in only.items():
        expected = ablated(network, reads[name], replacement, units, x)
        for unit, logits in zip(units, expected, strict=True):
            torch.testing.assert_close(found[name, unit], logits, rtol=tolerance, atol=tolerance)
    assert set(found) == {(name, unit) for name, units in only.items() for unit in units}
    return told.texts


@pytest.mark.parametrize("name", ONE_INPUT)
def test_every_architecture_gives_what_the_naive_loop_gives(name: str) -> None:
    network, groups = network_of(name)
    for ablation in ("zero", "mean"):
        assert not compare(network, groups, inputs_of(name), ablation)


@pytest.mark.parametrize("name", ["mlp", "preactivation_resnet", "densenet", "mobilenet_v3", "torch_encoder", "llama"])
def test_in_float64_the_two_agree_to_1e_6(name: str, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made, (inputs,) = ARCHITECTURES[name][0]().double(), ARCHITECTURES[name][1]()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    randomise_statistics(made)
    network = lift(read_pt2(export(made, (inputs,), tmp_path / "network.pt2")))
    groups = find_groups(network)
    for ablation in ("zero", "mean"):
        assert not compare(network, groups, inputs_of(name), ablation)


@pytest.mark.parametrize("name", ["resnet8", "fused_qkv"])
def test_residual_ablation_agrees_too(name: str) -> None:
    network, groups = network_of(name)
    assert not compare(network, groups, inputs_of(name), "residual")


@pytest.mark.parametrize("name", ["resnet8", "vit"])
def test_little_memory_changes_batches_and_not_results(name: str) -> None:
    network, groups = network_of(name)
    weights = sum(tensor.numel() * 4 for tensor in network.state_dict().values())
    assert not compare(network, groups, inputs_of(name), "mean", memory=weights + 2**16)


def test_little_memory_takes_groups_a_few_at_a_time() -> None:
    network, groups = network_of("resnet8")
    everything = work(network, groups, 2**30)
    assert everything.segments() == [list(groups)]
    weights = everything.folded.network.state_dict().values()
    little = work(network, groups, sum(tensor.numel() * 4 for tensor in weights) + 2**21)
    assert [name for few in little.segments() for name in few] == list(groups)
    assert len(little.segments()) > 1
    assert little.examples(list(groups)) < everything.examples(list(groups))


def work(network: LayerGraph, groups: Groups, memory: int) -> Work:
    reads, calibration = find_reads(groups), inputs_of("resnet8")
    replacement = fit(network, groups, reads, calibration, "zero")
    return Work(network, reads, replacement, chosen_units(groups, None), calibration, memory, Silent())


# What cannot be stacked -------------------------------------------------------------------------------------------


def test_a_network_whose_examples_mix_takes_full_passes(tmp_path: Path) -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.second(self.first(x).relu())
            return self.head(hidden - hidden.mean(0, keepdim=True))

    torch.manual_seed(0)
    network = lift(read_pt2(export(Mixing(), (torch.randn(3, 6),), tmp_path / "mixing.pt2")))
    x = torch.randn(EXAMPLES, 6).numpy()
    calibration = Calibration(Split(x, None, np.arange(EXAMPLES), Scaling()), np.arange(EXAMPLES))
    texts = compare(network, find_groups(network), calibration, "zero")
    assert texts
    assert all("full pass" in text for text in texts)


def test_a_batch_that_is_fixed_takes_full_passes(tmp_path: Path) -> None:
    network, groups = network_of("mlp")
    fixed = copy.deepcopy(network)
    for node in fixed.graph.nodes:
        meta = node.meta.get("val")
        if isinstance(meta, TensorMeta):
            node.meta["val"] = TensorMeta(meta.example_shape, meta.dtype)
    texts = compare(fixed, find_groups(fixed), inputs_of("mlp"), "zero")
    assert len(texts) == len(groups)
    assert all("batch" in text for text in texts)


def test_a_wrong_suffix_is_noticed_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_updates, "less", lambda values, _part, _in_place: values)
    texts = compare(*network_of("lenet"), inputs_of("lenet"), "zero")
    assert any("do not give what single passes give" in text for text in texts)


# Pairs and rows ---------------------------------------------------------------------------------------------------


def test_pairs_in_which_a_unit_is_silent_are_not_computed() -> None:
    active = torch.tensor([[True, False, True, True], [False, False, False, False], [True, True, True, True]])
    found = list(tiles(active, 5, 4))
    assert [tile.slots.tolist() for tile in found] == [[5, 5, 5, 7], [7, 7, 7]]
    assert [tile.examples.tolist() for tile in found] == [[0, 2, 3, 0], [1, 2, 3]]
    assert [list(tile.segments) for tile in found] == [[(5, 0, 3), (7, 3, 4)], [(7, 0, 3)]]
    assert [tile.span for tile in found] == [None, slice(1, 4)]


def test_a_single_row_is_computed_twice() -> None:
    (only,) = tiles(torch.tensor([[False, True]]), 0, 4)
    assert only.examples.tolist() == [1, 1]


@pytest.mark.parametrize("examples_inside", [1, 4])
def test_rows_of_merged_axes_are_told_apart(examples_inside: int) -> None:
    layout = Layout(0, examples_inside)
    value = torch.arange(12.0)[:, None]  # of three examples and four others
    chosen = rows(value, layout, 3, torch.tensor([2, 0]))[:, 0]
    if examples_inside == 4:
        assert chosen.tolist() == [8, 9, 10, 11, 0, 1, 2, 3]
    else:
        assert chosen.tolist() == [2, 0, 5, 3, 8, 6, 11, 9]


def test_gradients_are_on_for_whoever_reads_the_results() -> None:
    network, groups = network_of("mlp")
    reads, calibration = find_reads(groups), inputs_of("mlp")
    replacement = fit(network, groups, reads, calibration, "zero")
    for part in ablated_logits(network, groups, reads, calibration, replacement, memory_bytes=MEMORY):
        assert torch.is_grad_enabled()
        assert not part.logits.requires_grad


def test_the_network_is_left_as_it_was() -> None:
    network, groups = network_of("resnet8")
    before, training = copy.deepcopy(network.state_dict()), network.training
    compare(network, groups, inputs_of("resnet8"), "mean", count=1)
    assert network.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
