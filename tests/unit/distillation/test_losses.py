from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.contract.objectives import KdObjective
from tests.reference import distillation as reference
from tests.unit.distillation.examples import logits
from workers.distillation.losses import DIVERGENCES as TABLE
from workers.distillation.losses import Divergence, knowledge_distillation, soft_loss

LOGITS = st.lists(st.lists(st.floats(-20, 20), min_size=4, max_size=4), min_size=3, max_size=3)
LABELS = st.lists(st.integers(0, 3), min_size=3, max_size=3)
DIVERGENCES = st.sampled_from(["forward_kl", "reverse_kl", "jensen_shannon"])


@given(
    LOGITS, LOGITS, LABELS, st.floats(0.5, 20), st.floats(0, 1), st.floats(0, 0.9), DIVERGENCES, st.floats(0.01, 0.99)
)
def test_the_loss_is_the_formula_word_for_word(
    student: list[list[float]],
    teacher: list[list[float]],
    labels: list[int],
    T: float,
    alpha: float,
    smoothing: float,
    divergence: Divergence,
    beta: float,
) -> None:
    ours = knowledge_distillation(
        torch.tensor(student, dtype=torch.float64),
        torch.tensor(teacher, dtype=torch.float64),
        torch.tensor(labels),
        temperature=T,
        alpha=alpha,
        label_smoothing=smoothing,
        divergence=divergence,
        beta=beta,
    )
    literal = reference.knowledge_distillation(student, teacher, labels, T, alpha, smoothing, divergence, beta)
    assert float(ours) == pytest.approx(literal, rel=1e-9, abs=1e-9)


def test_it_agrees_with_torchs_own_losses() -> None:
    torch.default_generator.manual_seed(0)
    student, teacher, y = torch.randn(32, 10), torch.randn(32, 10), torch.randint(10, (32,))
    T, alpha, smoothing = 4.0, 0.1, 0.2
    hard = torch.nn.functional.cross_entropy(student, y, label_smoothing=smoothing)
    soft = torch.nn.functional.kl_div(
        (student / T).log_softmax(1), (teacher / T).log_softmax(1), reduction="batchmean", log_target=True
    )
    ours = knowledge_distillation(student, teacher, y, temperature=T, alpha=alpha, label_smoothing=smoothing)
    torch.testing.assert_close(ours, alpha * hard + (1 - alpha) * T**2 * soft)


def test_the_gradient_of_the_soft_term_is_t_times_the_difference_of_the_tempered_outputs() -> None:
    torch.default_generator.manual_seed(0)
    student, teacher = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.randn(5, 3).double()
    soft_loss(student, teacher, temperature=3.0).backward()  # type: ignore[no-untyped-call]  # torch's own
    expected = 3.0 * ((student / 3).softmax(1) - (teacher / 3).softmax(1)) / 5
    torch.testing.assert_close(student.grad, expected.detach())


def test_a_student_that_copies_its_teacher_has_no_soft_loss() -> None:
    logits = torch.tensor([[3.0, -1.0, 40.0], [0.0, 0.0, 0.0]])
    assert float(soft_loss(logits + 7.0, logits, temperature=2.0)) == pytest.approx(0.0, abs=1e-9)


def test_unlabelled_examples_are_learned_from_the_teacher_alone() -> None:
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    alone = knowledge_distillation(student, teacher, None, temperature=2.0, alpha=0.0)
    assert float(alone) == float(soft_loss(student, teacher, temperature=2.0))
    with pytest.raises(ValueError, match="no labels"):
        knowledge_distillation(student, teacher, None, temperature=2.0, alpha=0.5)


def test_with_alpha_one_the_teacher_is_not_asked() -> None:
    student, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    loss = knowledge_distillation(student, None, y, temperature=2.0, alpha=1.0)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(student, y))
    with pytest.raises(ValueError, match="teacher's logits"):
        knowledge_distillation(student, None, y, temperature=2.0, alpha=0.9)


def test_the_loss_stays_finite_where_probabilities_underflow() -> None:
    student = torch.tensor([[500.0, -500.0]], requires_grad=True)
    loss = knowledge_distillation(student, -student.detach(), torch.tensor([1]), temperature=1.0, alpha=0.5)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_every_divergence_of_the_catalogue_has_a_function() -> None:
    assert set(TABLE) == set(get_args(KdObjective.model_fields["divergence"].annotation))


@pytest.mark.parametrize(("beta", "like"), [(1e-4, "forward_kl"), (1 - 1e-4, "reverse_kl")])
def test_generalised_jensen_shannon_ends_in_the_two_kl(beta: float, like: Divergence) -> None:
    student, teacher = logits(0)
    mixed = soft_loss(student, teacher, temperature=2.0, divergence="jensen_shannon", beta=beta)
    assert float(mixed) / 1e-4 == pytest.approx(
        float(soft_loss(student, teacher, temperature=2.0, divergence=like)), rel=1e-2
    )
