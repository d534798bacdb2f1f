"""Honest archives: every tensor to the bit, without a copy, and the graph that torch's own loader would give."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from service.contract.errors import InputRejected
from tests.architectures import ARCHITECTURES, export, exported, quiet, specimen
from tests.unit.formats.pt2_forgery import forge
from workers.formats.artifacts import export_program
from workers.formats.pt2_reader import read_pt2
from workers.graph.calls import is_aten
from workers.graph.lifting import lift
from workers.graph.tensor_meta import SymbolRange


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_tensor_is_read_to_the_bit(name: str) -> None:
    network, _ = specimen(name)
    program = read_pt2(exported(name, training=True))
    for key, value in network.state_dict().items():
        held = program.tensors[key]
        assert held.persistent
        assert held.value.dtype == value.dtype
        assert torch.equal(held.value, value)
    persistent = {key for key, held in program.tensors.items() if held.persistent}
    assert persistent == set(network.state_dict())


@pytest.mark.parametrize("name", ["resnet8", "gpt", "lstm"])
def test_outputs_are_those_of_torchs_own_loader(name: str) -> None:
    _, inputs = specimen(name)
    with quiet():
        theirs = torch.export.load(exported(name)).module()
    assert torch.equal(lift(read_pt2(exported(name)))(*inputs), theirs(*inputs))


def test_training_what_was_read_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    network, inputs = specimen("mlp")
    path = export(network, inputs, tmp_path / "model.pt2")
    before = path.read_bytes()
    ours = lift(read_pt2(path))
    with torch.no_grad():
        for weight in ours.parameters():
            weight.zero_()
    assert path.read_bytes() == before
    assert torch.equal(lift(read_pt2(path))(*inputs), network.eval()(*inputs))


def test_weights_are_views_of_the_file(tmp_path: Path) -> None:
    """64 MiB of weights are read while the process grows by a fraction of that."""
    network = nn.Sequential(nn.Linear(4096, 4096, bias=False))
    path = export(network, (torch.ones(2, 4096),), tmp_path / "model.pt2")
    weight = read_pt2(path).tensors["0.weight"].value
    assert weight.untyped_storage().nbytes() == 4096 * 4096 * 4
    before = resident_bytes()
    kept = [read_pt2(path) for _ in range(4)]
    assert resident_bytes() - before < 32 * 2**20
    assert torch.equal(kept[3].tensors["0.weight"].value, network[0].weight)


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def test_records_that_are_not_aligned_are_read_too(tmp_path: Path) -> None:
    network, inputs = specimen("mlp")
    for length in range(1, 5):
        path = forge(exported("mlp"), tmp_path / "model.pt2", root="r" * length)
        assert torch.equal(lift(read_pt2(path))(*inputs), network.eval()(*inputs))


class Odd(nn.Module):
    """Tensors of every layout that an archive may hold: transposed, sliced, empty, scalar, channels last, bool."""

    def __init__(self) -> None:
        super().__init__()
        base = torch.randn(6, 4)
        self.transposed = nn.Parameter(torch.randn(3, 4).t())
        self.base = nn.Parameter(base)
        self.window = nn.Parameter(base[2:4])
        self.scalar = nn.Parameter(torch.tensor(3.0))
        self.images = nn.Parameter(torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last))
        self.register_buffer("empty", torch.empty(0, 4))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("halves", torch.randn(4).half())
        self.register_buffer("brain", torch.randn(4).bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.scalar + self.window.sum() + self.base.sum() + self.transposed.sum() + self.images.mean()
        return y * self.mask + self.halves.float() + self.brain.float() + torch.cat([self.empty, self.empty]).sum()


def test_tensors_of_every_layout_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, inputs = Odd(), (torch.randn(3, 4),)
    with quiet():
        program = read_pt2(export(network, inputs, tmp_path / "model.pt2"))
    for key, value in network.state_dict().items():
        held = program.tensors[key].value
        assert (held.dtype, held.stride()) == (value.dtype, value.stride())
        assert torch.equal(held, value)
    storage = program.tensors["base"].value.untyped_storage().data_ptr()
    assert program.tensors["window"].value.untyped_storage().data_ptr() == storage
    assert torch.equal(lift(program)(*inputs), network(*inputs))


class TokenMixer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (torch.softmax(x, 1) * (x.shape[1] - 1)).flatten(0, 1)


def test_batch_and_sequence_stay_dynamic(tmp_path: Path) -> None:
    batch, tokens = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("tokens", min=4, max=512)
    program = torch.export.export(TokenMixer(), (torch.randn(3, 8, 5),), dynamic_shapes=({0: batch, 1: tokens},))
    path = tmp_path / "model.pt2"
    torch.export.save(program, path)
    ours = lift(read_pt2(path))
    assert sorted(ours.symbols.values(), key=str) == [SymbolRange(2, 64), SymbolRange(4, 512)]
    assert ours.outputs[0].example_shape == (24, 5)
    other = torch.randn(7, 21, 5)
    assert torch.equal(ours(other), TokenMixer()(other))


def test_an_export_with_one_fixed_batch_is_read_as_it_is(tmp_path: Path) -> None:
    network, inputs = specimen("mlp")
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(network.eval(), inputs), path)
    ours = lift(read_pt2(path))
    assert ours.outputs[0].shape == (3, 10)
    assert not ours.symbols


def test_our_own_artifact_is_read_back(tmp_path: Path) -> None:
    network, inputs = specimen("resnet8")
    ours = lift(read_pt2(exported("resnet8", training=True)))
    export_program(ours, inputs[0], tmp_path / "model.pt2")
    again = lift(read_pt2(tmp_path / "model.pt2"))
    assert torch.equal(again(*inputs), network.eval()(*inputs))


class Constants(nn.Module):
    """Options that are no tensors are part of the graph; a dictionary is returned as its tensors."""

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> dict[str, Tensor]:
        if mask is not None:
            x = x * mask
        return {"scaled": x * scale, "shifted": x + torch.tensor([1.0, 2.0])}


def test_constants_of_the_example_call_are_part_of_the_graph(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Constants(), (torch.ones(3, 2), None), {"scale": 4.0}), path)
    ours = lift(read_pt2(path))
    assert list(ours.inputs) == ["x"]
    scaled, shifted = ours(torch.ones(3, 2))
    assert torch.equal(scaled, torch.full((3, 2), 4.0))
    assert torch.equal(shifted, torch.tensor([[2.0, 3.0]] * 3))


def test_a_model_without_tensors_as_outputs_is_refused(tmp_path: Path) -> None:
    class Size(nn.Module):
        def forward(self, x: Tensor) -> int:
            return x.shape[0]

    path = tmp_path / "model.pt2"
    with quiet():
        batch = torch.export.Dim.DYNAMIC
        torch.export.save(torch.export.export(Size(), (torch.ones(3, 2),), dynamic_shapes=({0: batch},)), path)
    with pytest.raises(InputRejected, match="no tensor") as refusal:
        read_pt2(path)
    assert refusal.value.fault().code == "signature_refused"


class Arguments(nn.Module):
    """Inputs called after what generated code uses."""

    def forward(self, input: Tensor, torch: Tensor, getattr: Tensor) -> Tensor:
        return (input + torch).relu() + getattr.sum()


def test_inputs_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    inputs = (torch.randn(3, 2), torch.randn(3, 2), torch.randn(4))
    torch.export.save(torch.export.export(Arguments(), inputs), path)
    ours = lift(read_pt2(path))
    assert next(iter(ours.inputs)) == "input"
    assert torch.equal(ours(*inputs), Arguments()(*inputs))


class Answer(nn.Module):
    def forward(self) -> Tensor:
        return torch.zeros(3)


def test_a_model_without_tensors_as_inputs_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Answer(), ()), tmp_path / "model.pt2")
    with pytest.raises(InputRejected, match="takes no tensor"):
        read_pt2(tmp_path / "model.pt2")


def test_nodes_are_named_after_their_operators() -> None:
    program = read_pt2(exported("resnet8"))
    calls = [node for node in program.graph.nodes if is_aten(node, "conv2d", "relu")]
    assert calls
    assert all(node.name.startswith(("conv2d", "relu")) for node in calls)
