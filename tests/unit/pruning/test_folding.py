"""Folding means into biases is mean ablation, where a constant says the same everywhere."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.unit.pruning.refit_subjects import SILENT, Subject, outputs, subject
from workers.graph.layer_graph import LayerGraph
from workers.pruning.reads import Read, ReadingRun, find_reads
from workers.pruning.repair.folding import fold_means


def mean_ablated(case: Subject) -> Tensor:
    """The teacher's outputs when every reader is given the means of removed units, in place of the units."""
    reads = find_reads(case.groups)
    means: dict[Read, Tensor] = {}

    def observe(read: Read, value: Tensor) -> Tensor:
        means[read] = value.mean([axis for axis in range(value.dim()) if axis != read.axis], keepdim=True)
        return value

    def replace(read: Read, value: Tensor) -> Tensor:
        gone = torch.zeros(value.shape[read.axis], dtype=torch.bool)
        gone[read.indices[case.selection[read.group]].flatten()] = True
        shape = [-1 if axis == read.axis else 1 for axis in range(value.dim())]
        return torch.where(gone.view(shape), means[read], value)

    with torch.no_grad():
        ReadingRun(case.teacher, reads, observe).outputs(case.x.double())
        return ReadingRun(case.teacher, reads, replace).outputs(case.x.double())


def folded(case: Subject) -> tuple[LayerGraph, tuple[str, ...]]:
    student = case.student()
    return student, fold_means(case.teacher, student, case.groups, case.kept, case.calibration, SILENT)


class Dense(nn.Module):
    """Dense layers, the last behind a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)))).flatten(1))


class Unpadded(nn.Module):
    """Convolutions without padding, one with a batch norm instead of a bias, and one whose groups go whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3, stride=2, bias=False), nn.Conv2d(6, 4, 2)
        self.norm, self.own, self.head = nn.BatchNorm2d(6), nn.Conv2d(4, 4, 1, groups=4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.b(torch.tanh(self.a(x)))))
        return self.head(torch.tanh(self.own(torch.tanh(self.c(x)))).mean((2, 3)))


@pytest.mark.parametrize(("network", "shape"), [(Dense, (3, 4)), (Unpadded, (2, 9, 9))])
def test_a_folded_network_is_the_teacher_with_units_at_their_means(
    network: type[nn.Module], shape: tuple[int, ...]
) -> None:
    case = subject(network(), shape)
    student, left = folded(case)
    assert left == ()
    torch.testing.assert_close(outputs(student, case.x), mean_ablated(case), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(outputs(student, case.x), outputs(case.student(), case.x), rtol=1e-2)


class Padded(nn.Module):
    """A padded convolution, one that is spread out, and no nonlinearity behind either."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 4, 3, padding=1)
        self.c = nn.ConvTranspose2d(4, 3, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(torch.tanh(self.a(x)))).mean((2, 3))


def test_where_a_constant_says_different_things_its_mean_over_places_is_folded() -> None:
    drawn = subject(Padded(), (2, 7, 7))
    gone = drawn.selection["a"]
    case = Subject(drawn.teacher, drawn.groups, {"a": gone}, drawn.x)
    student, _ = folded(case)
    ablated = mean_of(case.teacher, case.x, "b", gone)
    torch.testing.assert_close(mean_of(student, case.x, "b"), ablated, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(mean_of(case.student(), case.x, "b"), ablated, rtol=1e-2)


def mean_of(network: LayerGraph, x: Tensor, layer: str, gone: list[int] | None = None) -> Tensor:
    """The mean over examples and places of what a layer says, with some of its inputs at their means."""
    found: list[Tensor] = []

    def fill(_module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        value = inputs[0].clone()
        if gone is not None:
            value[:, gone] = value[:, gone].mean((0, 2, 3), keepdim=True).expand_as(value[:, gone])
        return value

    called = network.get_submodule(layer)
    handles = [
        called.register_forward_pre_hook(fill),
        called.register_forward_hook(lambda _module, _inputs, output: found.append(output.mean((0, 2, 3)))),
    ]
    outputs(network, x)
    for handle in handles:
        handle.remove()
    return found[0]


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(8, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))


def test_a_reader_that_has_nowhere_to_put_a_mean_is_named_and_left_alone() -> None:
    case = subject(Bare(), (4,))
    student, left = folded(case)
    assert left == ("b",)
    assert torch.equal(student.b.weight, case.student().b.weight)
    assert not torch.equal(student.head.bias, case.student().head.bias)
