from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.reference import cost as reference
from workers.evaluation.cost import measure_cost
from workers.students.architectures import ARCHITECTURES, build

NARROW, WIDER = (16, 16, 32, 64), (32, 64, 128, 256)

# Architecture, its options, and the reference's walk for (input shape, number of classes).
ARCHITECTURE_WALKS: list[tuple[str, dict[str, Any], Callable[[Sequence[int], int], reference.Walk]]] = [
    ("mlp", {"hidden": [30, 20, 10]}, lambda s, k: reference.mlp(s, k, [30, 20, 10])),
    ("lenet_300_100", {}, lambda s, k: reference.mlp(s, k, [300, 100])),
    ("lenet5", {}, reference.lenet5),
    ("resnet8", {}, lambda s, k: reference.resnet(s, k, 8, NARROW)),
    ("resnet14", {}, lambda s, k: reference.resnet(s, k, 14, NARROW)),
    ("resnet20", {}, lambda s, k: reference.resnet(s, k, 20, NARROW)),
    ("resnet32", {}, lambda s, k: reference.resnet(s, k, 32, NARROW)),
    ("resnet44", {}, lambda s, k: reference.resnet(s, k, 44, NARROW)),
    ("resnet56", {}, lambda s, k: reference.resnet(s, k, 56, NARROW)),
    ("resnet110", {}, lambda s, k: reference.resnet(s, k, 110, NARROW)),
    ("resnet8x4", {}, lambda s, k: reference.resnet(s, k, 8, WIDER)),
    ("resnet32x4", {}, lambda s, k: reference.resnet(s, k, 32, WIDER)),
    ("wrn", {"depth": 16, "width": 1}, lambda s, k: reference.wrn(s, k, 16, 1)),
    ("wrn", {"depth": 16, "width": 2}, lambda s, k: reference.wrn(s, k, 16, 2)),
    ("vgg", {"depth": 8}, lambda s, k: reference.vgg(s, k, [1, 1, 1, 1, 1])),
    ("vgg", {"depth": 11}, lambda s, k: reference.vgg(s, k, [1, 1, 2, 2, 2])),
    ("vgg", {"depth": 13}, lambda s, k: reference.vgg(s, k, [2, 2, 2, 2, 2])),
    ("vgg", {"depth": 16}, lambda s, k: reference.vgg(s, k, [2, 2, 3, 3, 3])),
    ("vgg", {"depth": 19}, lambda s, k: reference.vgg(s, k, [2, 2, 4, 4, 4])),
    ("mobilenetv2", {}, lambda s, k: reference.mobilenetv2(s, k, 0.5)),
    ("mobilenetv2", {"width": 1.3}, lambda s, k: reference.mobilenetv2(s, k, 1.3)),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_reference_covers_every_architecture() -> None:
    assert {name for name, _, _ in ARCHITECTURE_WALKS} == set(ARCHITECTURES)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 19)], ids=str)
@pytest.mark.parametrize(
    ("name", "options", "walk"), ARCHITECTURE_WALKS, ids=lambda value: "" if callable(value) else str(value)
)
def test_the_cost_is_the_textbook_sum_over_the_layers(
    name: str,
    options: dict[str, Any],
    walk: Callable[[Sequence[int], int], reference.Walk],
    shape: tuple[int, int, int],
) -> None:
    cost = measure_cost(build(name, options, input_shape=shape, num_classes=10, seed=0), shape)
    assert (cost.parameters, cost.macs, cost.bytes) == walk(shape, 10).cost


def test_resnet20_on_cifar_costs_the_forty_million_macs_of_the_literature() -> None:
    network = build("resnet20", {}, input_shape=(3, 32, 32), num_classes=10, seed=0)
    assert measure_cost(network, (3, 32, 32)).macs == pytest.approx(40.8e6, rel=0.005)


class SharedLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6, bias=False)
        self.second = nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return out


def test_shared_weights_are_held_once_and_used_twice() -> None:
    cost = measure_cost(SharedLinear(), (6,))
    assert (cost.parameters, cost.macs, cost.bytes) == (36, 72, 144)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


class MatrixVector(nn.Module):
    """One number per example: (B, 8) @ (8,), with and without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.mv(x, self.vector) + torch.addmv(torch.zeros(len(x)), x, self.vector)


# Sequence length 5, width 16: four projections, and the products with all keys and all values.
ATTENTION = 4 * 5 * 16 * 16 + 2 * 5 * 5 * 16


@pytest.mark.parametrize(
    ("model", "shape", "macs"),
    [
        (SelfAttention(), (5, 16), ATTENTION),
        (nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (5, 16), ATTENTION + 2 * 5 * 16 * 32),
        (nn.LSTM(8, 16, batch_first=True), (5, 8), 5 * 4 * 16 * (8 + 16)),
        (nn.GRU(8, 16, batch_first=True), (5, 8), 5 * 3 * 16 * (8 + 16)),
        (nn.ConvTranspose2d(3, 4, 3), (3, 9, 9), 9 * 9 * 3 * 4 * 3 * 3),
        (nn.Conv1d(4, 6, 3, groups=2), (4, 9), 7 * 6 * 2 * 3),
        (MatrixVector(), (8,), 8 + 8),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_fused_kernels_hide_no_multiplications(model: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert measure_cost(model, shape).macs == macs


def test_token_ids_are_a_valid_input() -> None:
    model = nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 3))
    assert measure_cost(model, (5,), dtype=torch.int64).macs == 5 * 8 * 3


def test_half_precision_halves_the_bytes_alone() -> None:
    whole, half = measure_cost(nn.Linear(8, 4), (8,)), measure_cost(nn.Linear(8, 4).bfloat16(), (8,))
    assert half.bytes * 2 == whole.bytes
    assert (half.parameters, half.macs) == (whole.parameters, whole.macs)


def test_measuring_changes_neither_modes_nor_statistics_nor_backends() -> None:
    network = build("resnet8", {}, input_shape=(3, 8, 8), num_classes=10, seed=0)
    network.get_submodule("layer1").eval()
    modes = [module.training for module in network.modules()]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    rng = torch.get_rng_state()

    def backends() -> tuple[object, ...]:
        return (
            torch.backends.mha.get_fastpath_enabled(),
            torch.backends.mkldnn.enabled,
            torch.backends.cudnn.enabled,
            torch._C._get_flash_sdp_enabled(),
        )

    before = backends()
    measure_cost(network, (3, 8, 8))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())
    assert torch.equal(torch.get_rng_state(), rng)
    assert backends() == before


def test_modes_and_backends_are_restored_when_the_model_refuses_its_input() -> None:
    model = nn.Linear(8, 4)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        measure_cost(model, (7,))
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled
