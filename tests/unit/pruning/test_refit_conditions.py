"""What a refit does not depend on, what it leaves alone, and what it tells."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.unit.pruning.refit_subjects import Subject, outputs, subject
from workers.graph.layer_graph import LayerGraph
from workers.journal import Silent, Stopped
from workers.pruning.repair.refit import RIDGES, refit


class Small(nn.Module):
    """A residual block with a norm, and two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 6, 3, padding=2)
        self.norm, self.hidden, self.head = nn.BatchNorm2d(6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        x = torch.tanh(x + self.norm(self.b(F.relu(self.a(x)))))
        return self.head(F.relu(self.hidden(x.mean((2, 3)))))


@pytest.fixture(scope="module")
def small() -> Subject:
    return subject(Small(), (2, 6, 6), examples=60)


def weights(network: LayerGraph) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in network.state_dict().values()])


def gap(case: Subject, student: LayerGraph) -> float:
    """The mean squared difference from the teacher's outputs."""
    return float((outputs(student, case.x) - outputs(case.teacher, case.x)).square().mean())


def test_the_outputs_come_closer_to_the_teachers(small: Subject) -> None:
    student = small.student()
    before = gap(small, student)
    report = small.refit(student)
    assert report.taken == len(report.layers) == 4
    assert gap(small, student) < before / 5
    assert all(0 <= layer.error_after < layer.error_before for layer in report.layers)


def test_the_size_of_batches_does_not_matter(small: Subject) -> None:
    found = []
    for size in (60, 7, 1):
        student = small.student()
        small.refit(student, batch_size=size)
        found.append(weights(student))
    assert all(torch.allclose(found[0], other, rtol=1e-9, atol=1e-9) for other in found[1:])


def test_the_size_of_batches_does_not_matter_to_a_sample_of_rows(small: Subject) -> None:
    found = []
    for size in (60, 7):
        student = small.student()
        report = small.refit(student, batch_size=size, max_rows=500)
        assert max(layer.rows for layer in report.layers) <= 500
        assert min(layer.rows for layer in report.layers) == 60  # the dense layers' rows are all there
        found.append(weights(student))
    assert torch.allclose(*found, rtol=1e-9, atol=1e-9)


def test_the_memory_does_not_matter(small: Subject) -> None:
    generous, sparing, piecemeal = (small.student() for _ in range(3))
    assert small.refit(generous, batch_size=16).spilled_bytes == 0
    assert small.refit(sparing, batch_size=16, memory_bytes=120_000).spilled_bytes > 0
    assert torch.equal(weights(generous), weights(sparing))
    small.refit(piecemeal, memory_bytes=120_000)
    assert torch.allclose(weights(generous), weights(piecemeal), rtol=1e-9, atol=1e-9)


def test_a_layer_whose_moments_do_not_fit_stays_as_it_is(small: Subject) -> None:
    student = small.student()
    report = small.refit(student, memory_bytes=20_000)
    notes = {layer.layer: layer.note for layer in report.layers}
    assert "solving for it takes" in notes["a"]
    assert notes["head"] == ""
    assert torch.equal(student.a.weight, small.student().a.weight)


def test_with_nothing_removed_nothing_changes(small: Subject) -> None:
    case = Subject(small.teacher, small.groups, {}, small.x)
    student = case.student()
    assert case.refit(student).layers == ()
    assert torch.equal(weights(student), weights(case.teacher))


def test_without_units_that_said_nothing_the_teacher_is_found_again(small: Subject) -> None:
    teacher = copy.deepcopy(small.teacher)
    gone = small.selection["a"]
    teacher.a.weight.data[gone], teacher.a.bias.data[gone] = 0, 0
    case = Subject(teacher, small.groups, {"a": gone}, small.x)
    student = case.student()
    student.b.weight.data.normal_(generator=torch.Generator().manual_seed(0))  # what it was does not matter
    assert case.refit(student, 1e-12).taken == 1
    torch.testing.assert_close(outputs(student, case.x), outputs(teacher, case.x), rtol=1e-6, atol=1e-6)


def test_auto_takes_for_each_layer_the_ridge_that_does_best_on_examples_held_out(small: Subject) -> None:
    reports = {ridge: small.refit(small.student(), ridge).layers[0] for ridge in RIDGES}
    auto = small.refit(small.student(), "auto").layers[0]
    best = min(reports, key=lambda ridge: reports[ridge].error_after)
    assert auto == reports[best]


def test_a_refit_that_does_worse_on_examples_held_out_is_not_taken(small: Subject) -> None:
    teacher = copy.deepcopy(small.teacher)
    teacher.hidden.weight.data[0] = 0  # a constant: hardly anything is lost
    case = Subject(teacher, small.groups, {"hidden": [0]}, small.x[:8])
    student = case.student()
    fold = teacher.head.weight.data[:, 0] * teacher.hidden.bias.data[0].relu()
    student.head.bias.data += fold
    before = weights(student)
    (layer,) = case.refit(student, 10.0).layers
    assert not layer.taken
    assert layer.error_after > layer.error_before
    assert "held out" in layer.note
    assert torch.equal(weights(student), before)


def test_dead_inputs_are_no_obstacle(small: Subject) -> None:
    teacher = copy.deepcopy(small.teacher)
    teacher.hidden.bias.data -= 100.0  # behind the nonlinearity nothing is left
    case = Subject(teacher, small.groups, {"hidden": [0]}, small.x)
    student = case.student()
    case.refit(student)
    assert weights(student).isfinite().all()
    torch.testing.assert_close(outputs(student, case.x), outputs(teacher, case.x), rtol=1e-9, atol=1e-9)


def test_a_single_unit_may_be_left(small: Subject) -> None:
    case = Subject(small.teacher, small.groups, {"a": [*range(1, 8)], "hidden": [*range(1, 8)]}, small.x)
    student = case.student()
    before = gap(case, student)
    assert case.refit(student).taken == 2
    assert gap(case, student) < before


@pytest.mark.parametrize("examples", [1, 2, 5])
def test_few_examples_are_enough_to_run(small: Subject, examples: int) -> None:
    case = Subject(small.teacher, small.groups, small.selection, small.x[:examples])
    student = case.student()
    case.refit(student, "auto")
    assert weights(student).isfinite().all()


def test_values_that_overflow_leave_a_layer_as_it_is(small: Subject) -> None:
    teacher = copy.deepcopy(small.teacher)
    teacher.hidden.weight.data[1:] *= 1e308
    teacher.hidden.weight.data[1:] *= 1e10
    case = Subject(teacher, small.groups, {"hidden": [0]}, small.x)
    student = case.student()
    (layer,) = case.refit(student).layers
    assert not layer.taken
    assert "not finite" in layer.note
    assert torch.equal(student.head.weight, case.student().head.weight)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.c.weight = self.b.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))))


def test_a_weight_that_is_used_twice_is_left_alone() -> None:
    case = subject(Tied(), (4,))
    student = case.student()
    notes = {layer.layer: layer.note for layer in case.refit(student).layers}
    assert notes == {"b": "its weight is used elsewhere too", "c": "its weight is used elsewhere too", "head": ""}
    assert student.b.weight is student.c.weight


class Late(nn.Module):
    """A sum whose other side follows from layers that are computed after the layer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(8, 8)
        self.c, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        early = self.a(x)
        late = torch.tanh(self.c(torch.tanh(self.b(x))))
        return self.finish(early + late)

    def finish(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x))


class LateAndLast(Late):
    """The same, and nothing comes after the sum."""

    def finish(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(("network", "order"), [(Late, ["b", "c", "a", "head"]), (LateAndLast, ["b", "c", "a"])])
def test_a_layer_waits_for_what_is_added_to_it(network: type[nn.Module], order: list[str]) -> None:
    case = subject(network(), (4,), examples=100)
    student = case.student()
    before = gap(case, student)
    report = case.refit(student)
    assert [layer.layer for layer in report.layers] == order
    assert report.taken == len(order)
    assert gap(case, student) < before


def test_modes_and_gradients_stay_as_they_were(small: Subject) -> None:
    student = small.student().train()
    student.stem.weight.requires_grad_(False)
    small.refit(student)
    assert student.training
    assert student.norm.training
    assert [name for name, one in student.named_parameters() if not one.requires_grad] == ["stem.weight"]
    student(small.x.double()).sum().backward()


class Counting(Silent):
    def __init__(self, stop_at: float = math.inf) -> None:
        self.steps: list[tuple[int, int]] = []
        self.stop_at = stop_at

    def progress(self, step: int, total: int) -> None:
        self.steps.append((step, total))

    def check(self) -> None:
        if len(self.steps) >= self.stop_at:
            raise Stopped


def test_progress_is_told_and_stops_are_heeded(small: Subject) -> None:
    arguments = (small.teacher, small.student(), small.groups, small.kept, small.calibration, 1e-3)
    journal = Counting()
    refit(*arguments, memory_bytes=2**28, journal=journal, batch_size=16)
    assert [step for step, _ in journal.steps] == [*range(1, len(journal.steps) + 1)]
    assert journal.steps[-1][0] == journal.steps[-1][1]
    with pytest.raises(Stopped):
        refit(*arguments, memory_bytes=2**28, journal=Counting(stop_at=3), batch_size=16)


def test_the_same_seed_gives_the_same_weights(small: Subject) -> None:
    first, again, other = (small.student() for _ in range(3))
    for student, seed in ((first, 0), (again, 0), (other, 1)):
        small.refit(student, max_rows=200, seed=seed)
    assert torch.equal(weights(first), weights(again))
    assert not np.array_equal(weights(first), weights(other))
