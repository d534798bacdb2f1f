import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from tests.unit.distillation.examples import logits, zeros_and_ones
from workers.distillation.multilabel import binary_hard_loss, binary_soft_loss, multilabel_distillation


def test_the_hard_term_agrees_with_torch() -> None:
    (student, _), y = logits(0), zeros_and_ones(0)
    expected = binary_cross_entropy_with_logits(student, y, reduction="sum") / len(y)
    torch.testing.assert_close(binary_hard_loss(student, y), expected)
    torch.testing.assert_close(binary_hard_loss(student, y.to(torch.uint8)), expected)


def test_the_soft_term_is_the_cross_entropy_to_the_teacher_less_its_entropy() -> None:
    student, teacher = logits(1)
    p = (teacher / 3).sigmoid()
    cross = binary_cross_entropy_with_logits(student / 3, p, reduction="sum")
    entropy = binary_cross_entropy_with_logits(teacher / 3, p, reduction="sum")
    torch.testing.assert_close(binary_soft_loss(student, teacher, temperature=3.0), 9 * (cross - entropy) / 4)


def test_each_label_counts_for_itself() -> None:
    # A softmax would not see a number that is added to all outputs of a row.
    _, teacher = logits(1)
    assert float(binary_soft_loss(teacher + 1, teacher, temperature=1.0)) > 0.1


def test_what_it_lacks_is_told() -> None:
    (student, teacher), y = logits(1), zeros_and_ones(1)
    with pytest.raises(ValueError, match="no labels"):
        multilabel_distillation(student, teacher, None, temperature=1.0, alpha=0.5)
    with pytest.raises(ValueError, match="teacher's logits"):
        multilabel_distillation(student, None, y, temperature=1.0, alpha=0.5)
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        multilabel_distillation(student, teacher, torch.tensor([0, 1, 2, 3]), temperature=1.0, alpha=0.5)
