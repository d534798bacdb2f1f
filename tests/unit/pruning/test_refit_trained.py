"""What the refit is for: a trained network that lost half its units says again what it said."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from tests.architectures import exported, specimen
from tests.unit.pruning.refit_subjects import Subject, lifted, outputs
from workers.formats.pt2_reader import read_pt2
from workers.graph.groups import find_groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.lifting import lift

NUM_TRAIN = 1400


class MLP(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(),
            nn.Linear(64, 10),
        )  # fmt: skip


class CNN(nn.Module):
    """Convolutions with padding and a stride, and a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(1, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.down, self.head = nn.Conv2d(16, 24, 3, 2, 1, bias=False), nn.Linear(24, 10)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (16, 16, 24))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.norms[1](self.b(F.relu(self.norms[0](self.a(x))))))
        return self.head(F.relu(self.norms[2](self.down(x))).mean((2, 3)))


def digits() -> tuple[Tensor, Tensor]:
    """(1797, 1, 8, 8) about standardised, and labels; shuffled."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = torch.from_numpy(data.data[order].astype(np.float32)).view(-1, 1, 8, 8)
    return (x - 4.9) / 6.0, torch.from_numpy(data.target[order])


def trained(network: nn.Module, epochs: int) -> nn.Module:
    x, y = (part[:NUM_TRAIN] for part in digits())
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for epoch in range(epochs):
        for rows in torch.randperm(NUM_TRAIN, generator=torch.Generator().manual_seed(epoch)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return network.eval()


def half(teacher: LayerGraph, x: Tensor) -> Subject:
    """Without a drawn half of every group."""
    groups, draw = find_groups(teacher), np.random.default_rng(0)
    selection = {
        name: draw.permutation(group.num_units)[: group.num_units // 2].tolist() for name, group in groups.items()
    }
    return Subject(teacher, groups, selection, x)


@pytest.mark.parametrize(("network", "epochs"), [(MLP, 8), (CNN, 5)])
def test_half_a_trained_network_is_nearly_as_good_after_the_refit(network: type[nn.Module], epochs: int) -> None:
    torch.manual_seed(0)
    x, y = digits()
    case = half(lifted(trained(network(), epochs), x[:3]), x[:1000])
    unseen, labels = x[NUM_TRAIN:], y[NUM_TRAIN:]
    target = outputs(case.teacher, unseen).log_softmax(1)

    def accuracy_and_divergence(student: LayerGraph) -> tuple[float, float]:
        logits = outputs(student, unseen)
        divergence = F.kl_div(logits.log_softmax(1), target, log_target=True, reduction="batchmean")
        return float((logits.argmax(1) == labels).float().mean()), float(divergence)

    student = case.student()
    accuracy_before, divergence_before = accuracy_and_divergence(student)
    report = case.refit(student, "auto")
    accuracy, divergence = accuracy_and_divergence(student)
    teacher_accuracy, _ = accuracy_and_divergence(case.teacher)
    assert report.taken == len(report.layers)
    assert teacher_accuracy > 0.93
    assert accuracy > teacher_accuracy - 0.25
    assert accuracy > accuracy_before + 0.2
    assert divergence < divergence_before / 4


@pytest.mark.parametrize("name", ["vit", "torch_encoder", "fused_qkv", "llama", "convnext", "unet", "densenet"])
def test_every_kind_of_network_comes_closer_to_its_teacher(name: str) -> None:
    teacher = lift(read_pt2(exported(name)))
    (example,) = specimen(name)[1]
    generator = torch.Generator().manual_seed(0)
    shape = (80, *example.shape[1:])
    x = (
        torch.randn(shape, generator=generator)
        if example.is_floating_point()
        else torch.randint(1, 50, shape, generator=generator)
    )
    groups, draw = find_groups(teacher), np.random.default_rng(0)
    selection = {
        group.name: draw.permutation(group.num_units)[: group.num_units // 3].tolist()
        for group in groups.values()
        if group.kind == "channels"
    }
    case = Subject(teacher, groups, selection, x)
    student = case.student()

    def gap() -> float:
        with torch.no_grad():
            return float((student(x) - teacher(x)).square().mean())

    before = gap()
    report = case.refit(student, "auto")
    assert report.taken > 0
    assert gap() < 0.8 * before
