import pytest
import torch
from torch.nn.functional import mse_loss

from tests.unit.distillation.examples import logits
from workers.distillation.losses import soft_loss
from workers.distillation.regression import regression_distillation, squared_error


def test_it_agrees_with_torch() -> None:
    student, teacher = logits(0)
    y, _ = logits(1)
    expected = 0.3 * mse_loss(student, y) + 0.7 * mse_loss(student, teacher)
    torch.testing.assert_close(regression_distillation(student, teacher, y, alpha=0.3), expected)


def test_a_column_of_numbers_may_come_as_a_row() -> None:
    outputs, targets = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 0.0, 0.0])
    assert float(squared_error(outputs, targets)) == pytest.approx(20 / 3)


def test_hintons_soft_term_becomes_it_as_the_temperature_grows() -> None:
    student, teacher = (z - z.mean(1, keepdim=True) for z in logits(2))
    hot = soft_loss(student, teacher, temperature=1e5)
    # T² KL -> ½ · mean over classes of the squared difference.
    torch.testing.assert_close(hot, 0.5 * squared_error(student, teacher), rtol=1e-4, atol=0)


def test_what_it_lacks_is_told() -> None:
    student, teacher = logits(1)
    with pytest.raises(ValueError, match="no labels"):
        regression_distillation(student, teacher, None, alpha=0.5)
    with pytest.raises(ValueError, match="teacher's logits"):
        regression_distillation(student, None, teacher, alpha=0.5)
    with pytest.raises(ValueError, match=r"shape \(4, 1\)"):
        regression_distillation(student, teacher, torch.zeros(4), alpha=0.5)
