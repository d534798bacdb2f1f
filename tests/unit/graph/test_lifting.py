"""Lifted networks against the eager ones that were exported: the same bits, the same training, the same names."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.contract.errors import InputRejected
from tests.architectures import ARCHITECTURES, export, exported, quiet, specimen
from workers.formats.pt2_reader import read_pt2
from workers.graph.layer_graph import LayerGraph
from workers.graph.lifting import lift
from workers.graph.module_tree import module_at
from workers.graph.tensor_meta import SymbolicSize, TensorMeta

pytestmark = pytest.mark.usefixtures("one_thread")


def results(network: nn.Module, inputs: tuple[Tensor, ...], seed: int = 0) -> tuple[Tensor, ...]:
    """What a network computes when torch draws from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = network(*inputs)
    return found if isinstance(found, tuple) else (found,)


def same(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def train(network: nn.Module, inputs: tuple[Tensor, ...], steps: int = 3) -> list[float]:
    """A few steps of SGD on a made-up loss; the losses."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = torch.stack([output.square().mean() for output in results(network, inputs, seed=step)]).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def lifted(network: nn.Module, inputs: tuple[Tensor, ...], folder: Path, *, training: bool = False) -> LayerGraph:
    return lift(read_pt2(export(network, inputs, folder / "model.pt2", training=training)))


def assert_same_state(left: nn.Module, right: nn.Module) -> None:
    theirs, ours = left.state_dict(), right.state_dict()
    assert list(theirs) == list(ours)
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_export_in_training_mode_evaluates_trains_and_names_its_state_as_the_original(name: str) -> None:
    network, inputs = specimen(name)
    ours = lift(read_pt2(exported(name, training=True)))
    assert_same_state(network, ours)
    assert same(results(network.eval(), inputs), results(ours, inputs))
    # Dropout draws the same masks from the same seed, so that even networks with dropout train alike to the bit.
    assert train(network.train(), inputs) == train(ours.train(), inputs)
    assert_same_state(network, ours)
    assert same(results(network.eval(), inputs), results(ours.eval(), inputs))


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "conv1d", "gpt", "bert", "torch_encoder"])
def test_an_export_in_evaluation_mode_trains_as_the_original(name: str) -> None:
    network, inputs = specimen(name)
    ours = lift(read_pt2(exported(name)))
    for module in network.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0  # the one thing that such an export does not hold
    assert train(network.train(), inputs) == train(ours.train(), inputs)
    assert_same_state(network, ours)


@pytest.mark.parametrize("name", ["resnet8", "llama", "bert"])
def test_gradients_are_those_of_eager_training(name: str) -> None:
    network, inputs = specimen(name)
    ours = lift(read_pt2(exported(name, training=True))).train()
    for each in (network, ours):
        torch.stack([output.square().mean() for output in results(each, inputs)]).sum().backward()
    theirs = {key: weight.grad for key, weight in network.named_parameters()}
    assert theirs.keys() == dict(ours.named_parameters()).keys()
    assert all(torch.equal(theirs[key], weight.grad) for key, weight in ours.named_parameters())


def test_layers_stand_under_their_original_names() -> None:
    network, _ = specimen("unet")
    ours = lift(read_pt2(exported("unet", training=True)))
    for name, module in network.named_children():
        assert type(module_at(ours, name)) is type(module)
        assert repr(module_at(ours, name)) == repr(module)


def test_every_tensor_in_a_lifted_graph_has_a_shape_and_dtype() -> None:
    for name in ["resnet8", "llama", "lstm", "googlenet"]:
        for node in lift(read_pt2(exported(name, training=True))).graph.nodes:
            assert "val" in node.meta
            if node.op in {"placeholder", "get_attr"}:
                assert isinstance(node.meta["val"], TensorMeta)


def test_the_batch_stays_dynamic() -> None:
    ours = lift(read_pt2(exported("vit", training=True)))
    (given,) = ours.inputs.values()
    assert isinstance(given.shape[0], SymbolicSize)
    assert given.example_shape == (3, 3, 16, 16)
    assert ours.outputs[0].shape == (given.shape[0], 10)
    network, (images,) = specimen("vit")
    several = (torch.cat([images] * 3),)
    assert same(results(network.eval(), several), results(ours, several))


def test_a_plain_state_dict_of_the_same_network_loads() -> None:
    other, inputs = specimen("bottleneck_resnet", seed=1)
    ours = lift(read_pt2(exported("bottleneck_resnet", training=True)))
    ours.load_state_dict(other.state_dict())
    assert same(results(other.eval(), inputs), results(ours, inputs))


def test_a_copy_is_independent_and_complete() -> None:
    network, inputs = specimen("llama")
    ours = lift(read_pt2(exported("llama", training=True)))
    twin = copy.deepcopy(ours)
    assert_same_state(network, twin)
    assert dict(twin.named_buffers()).keys() == dict(network.named_buffers()).keys()
    train(twin.train(), inputs)
    assert same(results(network.eval(), inputs), results(ours, inputs))
    assert not same(results(ours, inputs), results(twin.eval(), inputs))


class Tied(nn.Module):
    """An embedding that is the head too, one layer under two names, and one called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 8)
        self.again = self.mix
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.again(self.mix(self.embed(tokens))))


def test_what_was_shared_stays_shared(tmp_path: Path) -> None:
    network = Tied()
    ours = lifted(network, (torch.randint(0, 11, (3, 5)),), tmp_path)
    assert ours.get_submodule("mix") is ours.get_submodule("again")
    assert isinstance(ours.get_submodule("embed"), nn.Embedding)
    assert isinstance(ours.get_submodule("head"), nn.Linear)
    assert ours.get_parameter("embed.weight") is ours.get_parameter("head.weight")
    assert_same_state(network, ours)
    assert len(list(ours.parameters())) == len(list(network.parameters()))


class AttentionWithDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)


def test_attention_drops_weights_in_training_only(tmp_path: Path) -> None:
    inputs = (torch.randn(3, 2, 4, 8),)
    network = AttentionWithDropout()
    ours = lifted(network, inputs, tmp_path, training=True)
    assert same(results(network.eval(), inputs), results(ours, inputs))
    assert same(results(network.train(), inputs), results(ours.train(), inputs))
    assert not same(results(ours.eval(), inputs), results(ours.train(), inputs))


class ManyNorms(nn.Module):
    """Norms at their edges: a plain average, no statistics, no weights, frozen in buffers, free of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.average = nn.BatchNorm2d(4, momentum=None)
        self.forgetful = nn.BatchNorm2d(4, track_running_stats=False)
        self.bare = nn.BatchNorm2d(4, affine=False)
        self.instance = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        self.odd = OddNorm()

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(self.instance(self.bare(self.forgetful(self.average(x)))))


class OddNorm(nn.BatchNorm2d):
    """A batch norm with a parameter more, which therefore stays a call."""

    def __init__(self) -> None:
        super().__init__(4)
        self.extra = nn.Parameter(torch.tensor(2.0))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.extra


def test_norms_of_every_kind_follow_the_mode(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(3, 4, 5, 5),)
    for each in (network := ManyNorms()).parameters():
        nn.init.normal_(each)
    train(network, inputs)
    ours = lifted(network, inputs, tmp_path)
    assert ours.get_submodule("average").momentum is None
    assert train(network.train(), inputs) == train(ours.train(), inputs)
    assert same(results(network.eval(), inputs), results(ours.eval(), inputs))
    # Norms that stay calls do not count batches when they were exported in evaluation mode; nothing reads the count.
    theirs, found = network.state_dict(), ours.state_dict()
    assert theirs.keys() == found.keys()
    assert all(torch.equal(theirs[key], found[key]) for key in theirs if key != "odd.num_batches_tracked")


def test_a_norm_that_stays_a_call_counts_batches_in_training_only(tmp_path: Path) -> None:
    inputs = (torch.randn(3, 4, 5, 5),)
    ours = lifted(OddNorm(), inputs, tmp_path, training=True)
    results(ours.eval(), inputs)
    assert int(ours.get_buffer("num_batches_tracked")) == 0
    results(ours.train(), inputs)
    assert int(ours.get_buffer("num_batches_tracked")) == 1


class WritesThroughViews(nn.Module):
    """One activation in place that nothing else sees, and two writes that something does see."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(self.layer(x))
        z = y * 2
        window = z[:, :3]
        z.mul_(3.0)
        z[:, 0] = 1.0
        return z + window.sum()


def test_writes_that_are_seen_elsewhere_stay_in_place(tmp_path: Path) -> None:
    inputs = (torch.randn(3, 6),)
    network = WritesThroughViews()
    ours = lifted(network, inputs, tmp_path)
    written = {str(node.target) for node in ours.graph.nodes if "_." in str(node.target)}
    assert written == {"aten.mul_.Tensor", "aten.fill_.Tensor"}
    assert same(results(network, inputs), results(ours, inputs))
    assert train(network, inputs) == train(ours, inputs)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 4)
        self.spare = nn.Linear(4, 4)
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("scratch", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x) * self.frozen + self.scratch


def test_what_the_graph_does_not_use_is_kept(tmp_path: Path) -> None:
    network = Unused()
    ours = lifted(network, (torch.randn(3, 4),), tmp_path)
    assert_same_state(network, ours)
    assert_same_state(network, copy.deepcopy(ours))
    assert not ours.get_parameter("frozen").requires_grad
    assert ours.get_parameter("used.weight").requires_grad


def test_new_tensors_are_made_where_the_input_lies() -> None:
    ours = lift(read_pt2(exported("llama"))).to("meta")
    assert ours(torch.zeros(2, 8, dtype=torch.int64, device="meta")).device.type == "meta"


@pytest.mark.parametrize("name", ["resnet8", "lstm", "llama"])
def test_a_lifted_network_is_exported_again_with_its_dynamic_batch(name: str, tmp_path: Path) -> None:
    network, inputs = specimen(name)
    ours = lift(read_pt2(exported(name, training=True)))
    path = export(ours, inputs, tmp_path / "again.pt2")
    again = lift(read_pt2(path))
    assert_same_state(network, again)
    doubled = tuple(torch.cat([each, each]) for each in inputs)
    assert same(results(network.eval(), doubled), results(again, doubled))


@pytest.mark.parametrize("name", ["resnet8", "unet", "convnext"])
def test_a_decomposed_program_is_put_together_again(name: str, tmp_path: Path) -> None:
    network, inputs = specimen(name)
    network.eval()
    batch = {0: torch.export.Dim.DYNAMIC}
    with quiet():
        program = torch.export.export(network, inputs, dynamic_shapes=(batch,)).run_decompositions()
        torch.export.save(program, tmp_path / "model.pt2")
    ours = lift(read_pt2(tmp_path / "model.pt2"))
    for key, module in network.named_modules():
        if isinstance(
            module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm
        ):
            assert repr(module_at(ours, key)) == repr(module)
    assert same(results(network, inputs), results(ours, inputs))
    assert train(network.train(), inputs) == train(ours.train(), inputs)


def test_a_program_decomposed_in_training_mode_is_refused_with_the_way_out(tmp_path: Path) -> None:
    network, inputs = specimen("resnet8")
    with quiet():
        torch.export.save(torch.export.export(network, inputs).run_decompositions(), tmp_path / "model.pt2")
    with pytest.raises(InputRejected, match=r"model\.eval\(\)"):
        read_pt2(tmp_path / "model.pt2")


def test_a_lifted_network_leaves_as_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    network, inputs = specimen("bert")
    ours = lift(read_pt2(exported("bert", training=True)))
    path = tmp_path / "model.onnx"
    batch = torch.export.Dim.DYNAMIC
    with quiet():
        torch.onnx.export(ours, inputs, path, dynamo=True, dynamic_shapes=({0: batch}, {0: batch}), verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    doubled = [torch.cat([each, each]) for each in inputs]
    given = {slot.name: each.numpy() for slot, each in zip(session.get_inputs(), doubled, strict=True)}
    (found,) = session.run(None, given)
    torch.testing.assert_close(torch.from_numpy(found), network.eval()(*doubled), atol=1e-5, rtol=1e-4)
