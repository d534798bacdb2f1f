import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.unit.distillation.examples import classes, logits
from workers.distillation.relational import correlation_distance, relational_distillation

WEIGHTS = {"temperature": 1.0, "inter_weight": 2.0, "intra_weight": 2.0}


def test_the_distance_is_one_minus_pearsons_correlation() -> None:
    x, y = logits(0, 6, 9)
    expected = [1 - np.corrcoef(x[i].numpy(), y[i].numpy())[0, 1] for i in range(6)]
    torch.testing.assert_close(correlation_distance(x, y, -1), torch.tensor(expected))
    torch.testing.assert_close(correlation_distance(x, y, 0), correlation_distance(x.T, y.T, -1))


@pytest.mark.parametrize(("y", "expected"), [([2.0, 4.0, 6.0], 0.0), ([3.0, 2.0, 1.0], 2.0)])
def test_it_reaches_from_0_to_2(y: list[float], expected: float) -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    assert float(correlation_distance(x, torch.tensor(y), 0)) == pytest.approx(expected, abs=1e-6)


def test_a_student_need_not_match_the_teachers_probabilities() -> None:
    # Halfway between the teacher and the uniform distribution everything correlates, and KL is large.
    teacher = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]])
    student = 0.5 * teacher + 0.5 / 3
    loss = relational_distillation(student.log(), teacher.log(), None, hard_weight=0.0, **WEIGHTS)
    assert float(loss) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("flat", ["student", "teacher", "both"])
def test_where_nothing_varies_there_is_nothing_to_follow(flat: str) -> None:
    student, teacher = (z.float() for z in logits(0))
    student = torch.zeros(4, 5) if flat in {"student", "both"} else student
    teacher = torch.zeros(4, 5) if flat in {"teacher", "both"} else teacher
    student.requires_grad_()
    loss = relational_distillation(student, teacher, None, hard_weight=0.0, **WEIGHTS)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    if flat != "student":
        assert float(student.grad.abs().max()) < 1e-5


def test_a_batch_of_one_example_has_rows_alone() -> None:
    student, teacher = logits(2, 1)
    both = relational_distillation(student, teacher, None, hard_weight=0.0, **WEIGHTS)
    rows = relational_distillation(student, teacher, None, hard_weight=0.0, **{**WEIGHTS, "intra_weight": 0.0})
    assert float(both) == float(rows) > 0


def test_what_it_lacks_is_told() -> None:
    (student, teacher), y = logits(1), classes(1)
    with pytest.raises(ValueError, match="no labels"):
        relational_distillation(student, teacher, None, **WEIGHTS)
    with pytest.raises(ValueError, match="teacher's logits"):
        relational_distillation(student, None, y, **WEIGHTS)
    alone: Tensor = relational_distillation(student, None, y, temperature=1.0, inter_weight=0.0, intra_weight=0.0)
    torch.testing.assert_close(alone, cross_entropy(student, y))
