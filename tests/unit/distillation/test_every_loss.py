"""What holds of every loss of the family: the formula, its gradient, and what a divergence must be."""

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.distillation.examples import (
    AND_REFERENCES,
    OF_A_SOFTMAX,
    SOFT,
    STANDARDIZED,
    classes,
    labels_for,
    logits,
)

SEEDS = st.integers(0, 10**6)
TEMPERATURES = st.sampled_from([0.1, 0.5, 1.0, 4.0, 20.0, 100.0])
STEP = 1e-5


def gradient_of(loss: Tensor, of: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, of)
    return cast("Tensor", gradient)


@pytest.mark.parametrize("name", AND_REFERENCES)
@settings(max_examples=20)
@given(seed=SEEDS)
def test_it_is_its_formula_word_for_word(name: str, seed: int) -> None:
    loss, literal = AND_REFERENCES[name]
    (student, teacher), labels = logits(seed), labels_for(name, seed)
    expected = literal(student.tolist(), teacher.tolist(), labels.tolist())
    assert float(loss(student, teacher, labels)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", AND_REFERENCES)
@pytest.mark.parametrize("seed", [0, 1])
def test_its_gradient_is_that_of_the_formula(name: str, seed: int) -> None:
    loss, literal = AND_REFERENCES[name]
    (student, teacher), labels = logits(seed), labels_for(name, seed)
    student.requires_grad_()
    ours = gradient_of(loss(student, teacher, labels), student)
    expected = torch.zeros_like(ours)
    for i in range(len(student)):
        for k in range(student.shape[1]):
            sides = []
            for step in (STEP, -STEP):
                moved = student.detach().clone()
                moved[i, k] += step
                sides.append(literal(moved.tolist(), teacher.tolist(), labels.tolist()))
            expected[i, k] = (sides[0] - sides[1]) / (2 * STEP)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", AND_REFERENCES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_answered_with_the_accuracy_of_single(name: str, dtype: torch.dtype) -> None:
    loss, literal = AND_REFERENCES[name]
    (student, teacher), labels = logits(0), labels_for(name, 0)
    student, teacher = student.to(dtype), teacher.to(dtype)
    value = loss(student.float(), teacher.float(), labels)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(literal(student.tolist(), teacher.tolist(), labels.tolist()), rel=2e-5)


@pytest.mark.parametrize("name", SOFT)
@settings(max_examples=20)
@given(seed=SEEDS, temperature=TEMPERATURES)
def test_a_student_like_its_teacher_has_nothing_to_learn(name: str, seed: int, temperature: float) -> None:
    _, teacher = logits(seed)
    student = teacher.clone().requires_grad_()
    loss = SOFT[name](student, teacher, temperature, classes(seed))
    assert float(gradient_of(loss, student).abs().max()) < 1e-6
    assert float(loss.detach()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", SOFT)
@settings(max_examples=20)
@given(seed=SEEDS, temperature=TEMPERATURES, size=st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
def test_it_is_never_negative_also_in_single_precision(name: str, seed: int, temperature: float, size: float) -> None:
    student, teacher = (z.float() for z in logits(seed, size=size))
    labels = classes(seed)
    assert float(SOFT[name](student, teacher, temperature, labels)) >= 0
    assert float(SOFT[name](teacher + 1e-5 * student, teacher, temperature, labels)) >= 0


@pytest.mark.parametrize("name", OF_A_SOFTMAX)
@settings(max_examples=20)
@given(seed=SEEDS, temperature=TEMPERATURES, shift=st.floats(-50, 50))
def test_adding_a_number_to_all_logits_of_a_row_changes_nothing(
    name: str, seed: int, temperature: float, shift: float
) -> None:
    (student, teacher), labels = logits(seed), classes(seed)
    shifted = SOFT[name](student + shift, teacher - 2 * shift, temperature, labels)
    torch.testing.assert_close(shifted, SOFT[name](student, teacher, temperature, labels), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", STANDARDIZED)
@settings(max_examples=20)
@given(seed=SEEDS, temperature=TEMPERATURES, scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
def test_a_standardized_loss_does_not_see_the_size_of_logits(
    name: str, seed: int, temperature: float, scale: float, shift: float
) -> None:
    (student, teacher), labels = logits(seed), classes(seed)
    mapped = SOFT[name](scale * student + shift, teacher / scale - shift, temperature, labels)
    torch.testing.assert_close(mapped, SOFT[name](student, teacher, temperature, labels), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("temperature", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("kind", ["extreme", "opposite", "no teacher's doubt", "equal", "single"])
def test_losses_and_gradients_stay_finite(name: str, temperature: float, kind: str) -> None:
    num_examples = 1 if kind == "single" else 4
    student, teacher = (z.float() for z in logits(7, num_examples, size=1e4 if kind == "extreme" else 3.0))
    if kind == "opposite":
        student = 1e4 * torch.eye(4, 5)
        teacher = -student
    if kind == "no teacher's doubt":
        teacher = 1e4 * torch.eye(4, 5)
    if kind == "equal":  # an output layer that starts at zero
        student = torch.zeros(4, 5)
    student.requires_grad_()
    loss = SOFT[name](student, teacher, temperature, classes(7, num_examples))
    assert loss.isfinite()
    assert gradient_of(loss, student).isfinite().all()


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0, 100.0])
def test_single_precision_agrees_with_double(name: str, temperature: float) -> None:
    (student, teacher), labels = logits(3, 16, 10), classes(3, 16, 10)
    single = [z.float() for z in (student, teacher)]
    double = [z.double().requires_grad_() for z in single]
    single[0].requires_grad_()
    ours, exact = SOFT[name](*single, temperature, labels), SOFT[name](*double, temperature, labels)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=0)
    ours_gradient, exact_gradient = gradient_of(ours, single[0]), gradient_of(exact, double[0])
    error = (ours_gradient.double() - exact_gradient).abs().max() / exact_gradient.abs().max()
    assert float(error) < 1e-3
