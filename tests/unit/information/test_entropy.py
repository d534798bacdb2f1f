import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from tests.reference import information as reference
from workers.information.entropy import (
    bernoulli_entropy_from_logits,
    conditional_entropy,
    entropy,
    entropy_from_logits,
    joint_entropy,
    marginal,
    marginal_entropy,
)

JOINT = torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.15, 0.25]], dtype=torch.float64)


def close(value: Tensor, expected: float, tolerance: float = 1e-12) -> bool:
    return math.isclose(float(value), expected, rel_tol=tolerance, abs_tol=tolerance)


def test_entropy_follows_its_formula_and_scipy() -> None:
    p = torch.softmax(torch.randn(5, 7, dtype=torch.float64), -1)
    for row, value in zip(p, entropy(p), strict=True):
        assert close(value, reference.entropy(row.tolist()))
        assert close(value, float(scipy.stats.entropy(row.numpy())))


def test_entropy_runs_along_any_dimension_of_any_batch() -> None:
    p = torch.softmax(torch.randn(3, 7, 2, 4), 1)
    assert entropy(p, dim=1).shape == (3, 2, 4)
    torch.testing.assert_close(entropy(p, dim=1), entropy(p.movedim(1, -1)))
    torch.testing.assert_close(entropy_from_logits(p.log(), dim=1), entropy(p, dim=1))


def test_entropy_in_bits_of_a_fair_coin_is_one() -> None:
    assert float(entropy(torch.tensor([0.5, 0.5]), base=2)) == 1.0


def test_entropy_of_a_certain_outcome_is_exactly_zero() -> None:
    assert float(entropy(torch.tensor([0.0, 1.0, 0.0]))) == 0.0
    assert float(entropy_from_logits(torch.tensor([0.0, 1000.0, -1000.0]))) == 0.0


@pytest.mark.parametrize("base", [1.0, 0.0, -2.0, math.inf, math.nan])
def test_a_base_that_is_no_base_is_refused(base: float) -> None:
    with pytest.raises(ValueError, match="base of the logarithm"):
        entropy(torch.tensor([0.5, 0.5]), base=base)


@pytest.mark.parametrize(
    ("p", "message"),
    [([3.0, 4.0], "sums to 7"), ([1.5, -0.5], "negative"), ([math.nan, 1.0], "NaN"), ([], "sums to 0")],
)
def test_what_is_no_distribution_is_refused(p: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entropy(torch.tensor(p))


def test_integers_are_refused_with_the_way_out() -> None:
    with pytest.raises(TypeError, match=r"\.float\(\)"):
        entropy(torch.tensor([1, 0]))


def test_the_gradient_from_logits_stays_finite_where_the_softmax_underflows() -> None:
    logits = torch.tensor([[0.0, -200.0, 300.0], [0.0, -math.inf, 1.0]], requires_grad=True)
    value = entropy_from_logits(logits)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(gradient).all())
    # The second row is a distribution over two classes.
    assert close(value[1].detach(), reference.entropy(reference.softmax([0.0, 1.0])), 1e-6)


def test_the_gradient_from_logits_is_that_of_finite_differences() -> None:
    logits = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(entropy_from_logits, logits)


def test_the_gradient_from_probabilities_is_that_of_logits_and_finite_at_zero() -> None:
    logits = torch.tensor([0.0, 1.0, -200.0, 2.0], requires_grad=True)
    (through_softmax,) = torch.autograd.grad(entropy(torch.softmax(logits, -1)), logits)
    (from_logits,) = torch.autograd.grad(entropy_from_logits(logits), logits)
    torch.testing.assert_close(through_softmax, from_logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_single(dtype: torch.dtype) -> None:
    logits = torch.randn(4, 100).to(dtype)
    value = entropy_from_logits(logits)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, entropy_from_logits(logits.float()))
    # Rounded probabilities no longer sum to 1, so a percent is what is left of them.
    torch.testing.assert_close(entropy(torch.softmax(logits, -1)), value, rtol=1e-2, atol=1e-2)


def test_a_hundred_thousand_equal_classes_have_the_entropy_of_their_number() -> None:
    assert close(entropy(torch.full((100_000,), 1e-5)), math.log(100_000), 1e-5)
    assert close(entropy_from_logits(torch.zeros(100_000)), math.log(100_000), 1e-5)


def test_bernoulli_entropy_is_that_of_two_outcomes() -> None:
    z = torch.tensor([-3.0, 0.0, 1.5, 500.0], dtype=torch.float64)
    for logit, value in zip(z[:3].tolist(), bernoulli_entropy_from_logits(z), strict=False):
        on = reference.sigmoid(logit)
        assert close(value, reference.entropy([on, 1 - on]))
    assert 0 <= float(bernoulli_entropy_from_logits(z)[3]) < 1e-200


def test_joint_marginal_and_conditional_entropy_follow_their_formulas() -> None:
    table, swapped = JOINT.tolist(), JOINT.T.tolist()
    p_x, p_y = reference.marginals(table)
    assert close(joint_entropy(JOINT), reference.joint_entropy(table))
    assert close(marginal_entropy(JOINT, of="x"), reference.entropy(p_x))
    assert close(marginal_entropy(JOINT, of="y"), reference.entropy(p_y))
    assert close(conditional_entropy(JOINT), reference.conditional_entropy(table))
    assert close(conditional_entropy(JOINT, given="y"), reference.conditional_entropy(swapped))
    assert marginal(JOINT, of="y").tolist() == pytest.approx(p_y)


def test_a_function_of_x_is_certain_given_x() -> None:
    joint = torch.tensor([[0.2, 0.0], [0.0, 0.5], [0.3, 0.0], [0.0, 0.0]])
    assert float(conditional_entropy(joint, given="x")) == 0.0
    assert float(conditional_entropy(joint, given="y")) > 0.1


def test_joint_tables_come_in_batches() -> None:
    batch = torch.stack([JOINT, JOINT.flip(0)])
    assert conditional_entropy(batch, base=2).shape == (2,)
    assert joint_entropy(batch).tolist() == pytest.approx([float(joint_entropy(JOINT))] * 2)
