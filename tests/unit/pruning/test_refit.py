"""The refit gives every reader of removed units the weights of its formula, whatever kind of layer it is."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.reference import refit as reference
from tests.reference.refit import Step
from tests.unit.pruning.refit_subjects import Subject, outputs, subject
from workers.graph.layer_graph import LayerGraph


def left(subject: Subject, group: str) -> list[int]:
    """The units of a group that remain."""
    return [unit for unit in range(subject.groups[group].num_units) if unit not in subject.selection[group]]


def check(subject: Subject, steps: list[Step], ridge: float = 1e-2) -> LayerGraph:
    """The refit and its reference agree, layers and tensors alike; the refitted network."""
    fast, slow = subject.student(), subject.student()
    for student in (fast, slow):
        for step in steps:  # else layers that lost little would not gain enough for their refit to be taken
            student.get_submodule(step.layer).weight.data.neg_()
    report = subject.refit(fast, ridge)
    reference.refit(subject.teacher, slow, steps, subject.x.double(), ridge)
    assert sorted(layer.layer for layer in report.layers) == sorted(step.layer for step in steps)
    assert all(layer.taken for layer in report.layers), report.layers
    for (name, mine), (_, theirs) in zip(fast.state_dict().items(), slow.state_dict().items(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    return fast


def node_of(subject: Subject, layer: str) -> str:
    """The node that calls a layer."""
    return next(node.name for node in subject.teacher.graph.nodes if node.target == layer)


def source_of(subject: Subject, layer: str) -> str:
    return next(node.args[0].name for node in subject.teacher.graph.nodes if node.target == layer)


def plain(subject: Subject, layer: str, group: str | None = None) -> Step:
    """A layer without a norm and outside of sums; `group` are its outputs."""
    outputs = None if group is None else left(subject, group)
    return Step(layer, source_of(subject, layer), node_of(subject, layer), outputs)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(F.relu(self.second(F.relu(self.first(x))))))


def test_dense_layers_one_after_another() -> None:
    case = subject(MLP(), (6,))
    check(case, [plain(case, "second", "second"), plain(case, "head")])


class Wide(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3))


@pytest.mark.parametrize("examples", [12, 24])
def test_layers_with_fewer_rows_than_columns_and_with_hardly_more(examples: int) -> None:
    case = subject(Wide(), (6,), examples)
    check(case, [plain(case, "2", "2"), plain(case, "4")])


class Convolutions(nn.Module):
    """A stride, a dilation, no bias, and a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, (3, 2), stride=(2, 1), padding=(1, 0))
        self.c = nn.Conv2d(4, 4, 2, dilation=2, bias=False)
        self.head = nn.Linear(4 * 2 * 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.c(F.relu(self.b(F.relu(self.a(x))))))
        return self.head(x.flatten(1))


def test_convolutions_with_padding_stride_and_dilation() -> None:
    case = subject(Convolutions(), (2, 7, 6))
    check(case, [plain(case, "b", "b"), plain(case, "c", "c"), plain(case, "head")])


class OneAxis(nn.Module):
    """ "same" padding that is odd, and an operator on free tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 4, 3), nn.Conv1d(4, 4, 4, padding="same")
        self.matrix, self.shift = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.b(torch.tanh(self.a(x))))
        return torch.addmm(self.shift, x.mean(2), self.matrix)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_convolutions_over_one_axis_and_products_with_free_matrices() -> None:
    case = subject(OneAxis(), (2, 10))
    step = plain(case, "b", "b")
    student, slow = case.student(), case.student()
    report = case.refit(student, 1e-2)
    assert [layer.taken for layer in report.layers] == [True, True]
    reference.refit(case.teacher, slow, [step], case.x.double(), 1e-2)
    torch.testing.assert_close(student.b.weight, slow.b.weight, rtol=1e-7, atol=1e-9)
    seen, taught = reference.run(student, case.x.double()), reference.run(case.teacher, case.x.double())
    X, Z = seen["mean_dim"], taught["addmm_default"]
    for output in range(3):
        w, b = reference.solution(X, Z[:, output], 1e-2, intercept=True)
        torch.testing.assert_close(student.matrix[:, output], w, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(student.shift[output], b, rtol=1e-7, atol=1e-9)


class ThreeAxes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(1, 4, 2), nn.Conv3d(4, 4, 2, padding=(1, 0, 1), stride=(1, 1, 2))
        self.head = nn.Conv3d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x))))).flatten(1)


def test_convolutions_over_three_axes() -> None:
    case = subject(ThreeAxes(), (1, 4, 4, 5))
    check(case, [plain(case, "b", "b"), plain(case, "head")])


class Grouped(nn.Module):
    """Four groups of channels, then every channel by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 8, 1)
        self.b = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.c = nn.Conv2d(8, 8, 3, groups=8)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.c(torch.tanh(self.b(torch.tanh(self.a(x))))))
        return self.head(x).mean((2, 3))


def test_grouped_and_depthwise_convolutions() -> None:
    case = subject(Grouped(), (2, 6, 6))
    (group,) = case.groups.values()
    units = [unit for unit in range(group.num_units) if unit not in case.selection[group.name]]
    indices = next(member.indices for member in group.members if member.tensor == "b.weight")
    stays = sorted(indices[units].flatten().tolist())
    steps = [Step(layer, source_of(case, layer), node_of(case, layer), stays) for layer in ("b", "c")]
    assert case.student().b.groups == 2
    check(case, [*steps, plain(case, "head")])


class Transposed(nn.Module):
    """Spread out by a stride, cropped by padding, and grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 1)
        self.b = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1)
        self.c = nn.ConvTranspose2d(4, 4, (2, 3), stride=(1, 2), dilation=(2, 1), padding=(0, 2))
        self.d = nn.ConvTranspose2d(4, 8, 2, stride=2, groups=4)
        self.head = nn.Conv2d(8, 3, 1, stride=3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.c(torch.tanh(self.b(torch.tanh(self.a(x))))))
        return self.head(torch.tanh(self.d(x))).mean((2, 3))


def test_transposed_convolutions() -> None:
    case = subject(Transposed(), (2, 4, 4))
    stays = [unit for unit in range(4) if unit not in case.selection["c"]]
    grouped = Step("d", source_of(case, "d"), node_of(case, "d"), [2 * unit + i for unit in stays for i in range(2)])
    check(case, [plain(case, "b", "b"), plain(case, "c", "c"), grouped, plain(case, "head")])


class Normed(nn.Module):
    """Batch norms behind a dense layer and convolutions, with a bias of their own and without."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3, bias=False), nn.Linear(6, 8)
        self.norm_b, self.norm_c, self.head = nn.BatchNorm2d(6), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_b(self.b(torch.tanh(self.a(x))))).mean((2, 3))
        return self.head(F.relu(self.norm_c(self.c(x))))


def behind_norm(case: Subject, layer: str, norm: str) -> Step:
    return Step(layer, source_of(case, layer), node_of(case, norm), left(case, layer), norm)


def test_batch_norms_are_rewritten_so_that_evaluation_and_training_say_the_same() -> None:
    case = subject(Normed(), (2, 7, 7))
    student = check(case, [behind_norm(case, "b", "norm_b"), behind_norm(case, "c", "norm_c"), plain(case, "head")])
    evaluated = outputs(student.eval(), case.x)
    torch.testing.assert_close(outputs(student.train(), case.x), evaluated, rtol=1e-3, atol=1e-3)


class Residual(nn.Module):
    """A shortcut of its own layer, computed after the branch; a plain shortcut behind dropout; and one in between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.a, self.b, self.shortcut = nn.Linear(8, 6), nn.Linear(6, 8, bias=False), nn.Linear(8, 8)
        self.c, self.d, self.drop, self.norm = nn.Linear(8, 6), nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        branch = self.b(torch.tanh(self.a(x)))
        x = torch.tanh(branch + self.shortcut(x))
        x = self.drop(self.norm(self.d(torch.tanh(self.c(x))))) + x
        return self.head(torch.tanh(x))


def residual_steps(case: Subject) -> list[Step]:
    sums = [node.name for node in case.teacher.graph.nodes if node.name.startswith("add")]
    stream = next(
        group.name
        for group in case.groups.values()
        if any((one.tensor, one.axis) == ("d.weight", 0) for one in group.members)
    )
    tanh = next(node.args[1].name for node in case.teacher.graph.nodes if node.name == sums[1])
    stays = left(case, stream)
    return [
        plain(case, "a", "a"),
        Step("b", source_of(case, "b"), node_of(case, "b"), stays),
        Step("shortcut", source_of(case, "shortcut"), sums[0], stays, None, node_of(case, "b")),
        plain(case, "c", "c"),
        Step("d", source_of(case, "d"), sums[1], stays, "norm", tanh),
        plain(case, "head"),
    ]


def test_at_a_residual_sum_the_later_side_closes_the_gap_of_the_sum() -> None:
    case = subject(Residual(), (5,), examples=200)
    check(case, residual_steps(case))
