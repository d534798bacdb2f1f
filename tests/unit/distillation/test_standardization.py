import torch

from tests.unit.distillation.examples import logits
from workers.distillation.losses import knowledge_distillation, soft_loss
from workers.distillation.standardization import standardized


def test_rows_have_mean_0_and_standard_deviation_1() -> None:
    z = standardized(logits(0, size=50.0)[0] + 7)
    torch.testing.assert_close(z.mean(1), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(z.std(1), torch.ones(4, dtype=torch.float64))


def test_a_row_that_does_not_vary_becomes_zeros() -> None:
    assert torch.equal(standardized(torch.full((2, 3), 4.0)), torch.zeros(2, 3))


def test_half_precision_is_answered_in_single() -> None:
    assert standardized(torch.randn(2, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_small_students_logits_may_be_smaller_than_its_teachers() -> None:
    _, teacher = logits(0)
    assert float(soft_loss(teacher / 10, teacher, temperature=2.0)) > 0.1
    assert float(soft_loss(teacher / 10, teacher, temperature=2.0, standardize=True)) < 1e-9


def test_the_hard_term_sees_logits_as_they_are() -> None:
    student, teacher = logits(1)
    y = torch.tensor([0, 1, 2, 3])
    options = {"temperature": 2.0, "alpha": 1.0}
    plain = knowledge_distillation(student, teacher, y, **options)
    assert torch.equal(knowledge_distillation(student, teacher, y, **options, standardize=True), plain)
