import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from tests.unit.distillation.examples import classes, logits
from workers.distillation.decoupled import decoupled_distillation, non_target_divergence, target_divergence
from workers.information.divergence import kl_divergence_from_logits


@given(st.integers(0, 10**6), st.floats(0.1, 10))
def test_hintons_divergence_falls_apart_into_both_parts(seed: int, size: float) -> None:
    (student, teacher), y = logits(seed, size=size), classes(seed)
    p_y = softmax(teacher, 1)[torch.arange(len(y)), y]
    parts = target_divergence(teacher, student, y) + (1 - p_y) * non_target_divergence(teacher, student, y)
    torch.testing.assert_close(parts, kl_divergence_from_logits(teacher, student))


def test_it_agrees_with_masks_and_torchs_own_losses() -> None:
    (student, teacher), y = logits(0, 32, 10), classes(0, 32, 10)
    T, mask = 4.0, torch.nn.functional.one_hot(y, 10).bool()

    def halves(z: torch.Tensor) -> torch.Tensor:
        p = softmax(z / T, 1)
        return torch.stack([p[mask], p[~mask].view(32, 9).sum(1)], dim=1)

    target = kl_div(halves(student).log(), halves(teacher), reduction="batchmean")
    others = kl_div(
        log_softmax(student[~mask].view(32, 9) / T, 1),
        softmax(teacher[~mask].view(32, 9) / T, 1),
        reduction="batchmean",
    )
    expected = cross_entropy(student, y) + 0.05 * T**2 * (1.0 * target + 8.0 * others)
    ours = decoupled_distillation(
        student, teacher, y, temperature=T, target_weight=1.0, non_target_weight=8.0, warmup=0.05
    )
    torch.testing.assert_close(ours, expected)


def test_a_teacher_without_doubt_is_still_heard_on_the_other_classes() -> None:
    teacher, y = torch.tensor([[200.0, 3.0, 1.0]]), torch.tensor([0])
    unlike = torch.tensor([[200.0, 1.0, 3.0]])
    assert float(kl_divergence_from_logits(teacher, unlike)) == 0
    assert float(non_target_divergence(teacher, unlike, y)) > 1


def test_of_two_classes_only_the_target_is_left() -> None:
    (student, teacher), y = logits(1, 4, 2), classes(1, 4, 2)
    assert torch.equal(non_target_divergence(teacher, student, y), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(target_divergence(teacher, student, y), kl_divergence_from_logits(teacher, student))


def test_what_it_lacks_is_told() -> None:
    (student, teacher), y = logits(1), classes(1)
    weights = {"temperature": 4.0, "target_weight": 1.0, "non_target_weight": 8.0}
    with pytest.raises(ValueError, match="no labels"):
        decoupled_distillation(student, teacher, None, **weights)
    with pytest.raises(ValueError, match="teacher's logits"):
        decoupled_distillation(student, None, y, **weights)
    alone = decoupled_distillation(student, None, y, temperature=4.0, target_weight=0.0, non_target_weight=0.0)
    torch.testing.assert_close(alone, cross_entropy(student, y))
