import math
from collections.abc import Callable

import pytest
import scipy.special
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from tests.reference import information as reference
from workers.information.divergence import (
    bernoulli_kl_from_logits,
    generalised_jensen_shannon,
    generalised_jensen_shannon_from_logits,
    jensen_shannon,
    jensen_shannon_from_logits,
    kl_divergence,
    kl_divergence_from_logits,
    reverse_kl_divergence,
    reverse_kl_divergence_from_logits,
)

Divergence = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = 3 * torch.randn(2, 6, 9, dtype=torch.float64, generator=generator)
    return a, b


def test_kl_follows_its_formula_and_scipy(logits: tuple[Tensor, Tensor]) -> None:
    a, b = logits
    p, q = torch.softmax(a, -1), torch.softmax(b, -1)
    expected = [reference.kl(s, t) for s, t in zip(p.tolist(), q.tolist(), strict=True)]
    assert kl_divergence(p, q).tolist() == pytest.approx(expected)
    assert kl_divergence_from_logits(a, b).tolist() == pytest.approx(expected)
    assert kl_divergence(p, q).tolist() == pytest.approx(scipy.special.rel_entr(p.numpy(), q.numpy()).sum(-1).tolist())
    assert kl_divergence(p, q, base=2).tolist() == pytest.approx([e / math.log(2) for e in expected])


def test_reverse_kl_exchanges_the_two(logits: tuple[Tensor, Tensor]) -> None:
    a, b = logits
    p, q = torch.softmax(a, -1), torch.softmax(b, -1)
    torch.testing.assert_close(reverse_kl_divergence(p, q), kl_divergence(q, p))
    torch.testing.assert_close(reverse_kl_divergence_from_logits(a, b), kl_divergence_from_logits(b, a))


def test_kl_is_infinite_where_p_has_mass_and_q_none_and_only_there() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    assert float(kl_divergence(p, q)) == math.inf
    assert float(kl_divergence(q, p)) == pytest.approx(math.log(2))
    assert float(kl_divergence_from_logits(p.log(), q.log())) == math.inf
    assert float(kl_divergence_from_logits(q.log(), p.log())) == pytest.approx(math.log(2))


def test_mass_that_underflows_is_still_mass_that_q_excludes() -> None:
    p, q = torch.tensor([0.0, -200.0]), torch.tensor([0.0, -math.inf])
    assert float(torch.softmax(p, -1)[1]) == 0.0
    assert float(kl_divergence_from_logits(p, q)) == math.inf


def test_kl_of_finite_logits_is_finite_however_small_the_probabilities() -> None:
    a, b = torch.tensor([300.0, 0.0]), torch.tensor([0.0, 300.0])
    assert float(kl_divergence_from_logits(a, b)) == pytest.approx(300.0)


@pytest.mark.parametrize("distance", [1e-1, 1e-3, 1e-5])
def test_kl_of_nearly_equal_distributions_keeps_its_digits_in_float32(distance: float) -> None:
    a = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    b = a + distance * torch.randn(1000, generator=torch.Generator().manual_seed(2))
    exact = reference.kl_from_logits(a.double().tolist(), b.double().tolist())
    assert float(kl_divergence_from_logits(a, b)) == pytest.approx(exact, rel=2e-2)


def test_the_textbook_sum_in_float32_would_have_lost_its_sign() -> None:
    """Why the terms are rearranged: the same data, summed the usual way."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200, 1000, generator=generator)
    b = a + 1e-5 * torch.randn(200, 1000, generator=generator)
    log_p, log_q = torch.log_softmax(a, -1), torch.log_softmax(b, -1)
    assert float((log_p.exp() * (log_p - log_q)).sum(-1).min()) < 0
    assert float(kl_divergence_from_logits(a, b).min()) > 0


def test_the_gradient_of_kl_is_the_difference_of_the_softmaxes(logits: tuple[Tensor, Tensor]) -> None:
    a, b = logits[0], logits[1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kl_divergence_from_logits(a, b).sum(), b)
    torch.testing.assert_close(gradient, torch.softmax(b, -1) - torch.softmax(a, -1))


@pytest.mark.parametrize(
    "divergence",
    [kl_divergence_from_logits, reverse_kl_divergence_from_logits, jensen_shannon_from_logits],
)
def test_gradients_are_those_of_finite_differences(divergence: Divergence, logits: tuple[Tensor, Tensor]) -> None:
    a, b = (z[:2, :4].clone().requires_grad_() for z in logits)
    assert torch.autograd.gradcheck(divergence, (a, b))
    nearly = (a.detach() + 1e-3 * b.detach()).requires_grad_()
    assert torch.autograd.gradcheck(divergence, (a, nearly))
    assert torch.autograd.gradgradcheck(divergence, (a, b))


def test_gradients_per_example_come_by_vmap(logits: tuple[Tensor, Tensor]) -> None:
    def divergence(student: Tensor, teacher: Tensor) -> Tensor:
        return kl_divergence_from_logits(teacher, student)

    a, b = logits
    gradients = torch.func.vmap(torch.func.grad(divergence))(b, a)
    torch.testing.assert_close(gradients, torch.softmax(b, -1) - torch.softmax(a, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "divergence",
    [
        kl_divergence_from_logits,
        reverse_kl_divergence_from_logits,
        jensen_shannon_from_logits,
        bernoulli_kl_from_logits,
    ],
)
def test_gradients_are_finite_where_probabilities_underflow(divergence: Divergence, dtype: torch.dtype) -> None:
    a = torch.tensor([[500.0, 0.0, -500.0], [0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    b = torch.tensor([[-500.0, 0.0, 500.0], [1e4, 0.0, -1e4]], dtype=dtype, requires_grad=True)
    value = divergence(a, b)
    gradients = torch.autograd.grad(value.sum(), (a, b))
    assert value.dtype == torch.float32
    assert bool(torch.isfinite(value).all())
    assert bool((value > 0).any())
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_classes_masked_in_both_leave_value_and_gradient_as_they_were() -> None:
    a = torch.tensor([1.0, -math.inf, 0.0], requires_grad=True)
    b = torch.tensor([0.0, -math.inf, 2.0], requires_grad=True)
    both: tuple[Divergence, ...] = (kl_divergence_from_logits, jensen_shannon_from_logits)
    for divergence in both:
        value = divergence(a, b)
        gradients = torch.autograd.grad(value, (a, b))
        kept = torch.tensor([0, 2])
        torch.testing.assert_close(value, divergence(a[kept], b[kept]))
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_a_class_masked_in_one_alone_leaves_finite_gradients_in_both() -> None:
    a = torch.tensor([1.0, -math.inf, 0.0], requires_grad=True)
    b = torch.tensor([0.0, 0.5, 2.0], requires_grad=True)
    for value in (
        kl_divergence_from_logits(a, b),
        reverse_kl_divergence_from_logits(b, a),
        jensen_shannon_from_logits(a, b),
    ):
        assert bool(torch.isfinite(value))
        gradients = torch.autograd.grad(value, (a, b))
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_gradients_through_probabilities_are_finite_at_zero() -> None:
    logits = torch.tensor([0.0, 1.0, -200.0], requires_grad=True)
    q = torch.softmax(logits, -1)
    (gradient,) = torch.autograd.grad(jensen_shannon(torch.tensor([0.2, 0.8, 0.0]), q), logits)
    assert bool(torch.isfinite(gradient).all())


def test_jensen_shannon_follows_its_formula_and_scipy(logits: tuple[Tensor, Tensor]) -> None:
    a, b = logits
    p, q = torch.softmax(a, -1), torch.softmax(b, -1)
    expected = [reference.jensen_shannon(s, t) for s, t in zip(p.tolist(), q.tolist(), strict=True)]
    assert jensen_shannon(p, q).tolist() == pytest.approx(expected)
    assert jensen_shannon_from_logits(a, b).tolist() == pytest.approx(expected)
    assert jensen_shannon(p, q).sqrt().tolist() == pytest.approx(jensenshannon(p.numpy(), q.numpy(), axis=-1).tolist())


@pytest.mark.parametrize("beta", [0.01, 0.3, 0.9])
def test_generalised_jensen_shannon_follows_its_formula(beta: float, logits: tuple[Tensor, Tensor]) -> None:
    a, b = logits
    p, q = torch.softmax(a, -1), torch.softmax(b, -1)
    expected = [reference.jensen_shannon(s, t, beta) for s, t in zip(p.tolist(), q.tolist(), strict=True)]
    assert generalised_jensen_shannon(p, q, beta=beta).tolist() == pytest.approx(expected)
    assert generalised_jensen_shannon_from_logits(a, b, beta=beta).tolist() == pytest.approx(expected)


def test_jensen_shannon_of_what_shares_nothing_is_log_two() -> None:
    p, q = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.5, 0.5])
    assert float(jensen_shannon(p, q, base=2)) == pytest.approx(1.0)
    assert float(jensen_shannon_from_logits(p.log(), q.log(), base=2)) == pytest.approx(1.0)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, math.nan])
def test_a_mixture_that_is_none_is_refused(beta: float) -> None:
    p = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        generalised_jensen_shannon(p, p, beta=beta)


def test_bernoulli_kl_is_that_of_two_outcomes() -> None:
    a, b = 2 * torch.randn(2, 30, dtype=torch.float64)
    expected = []
    for s, t in zip(a.tolist(), b.tolist(), strict=True):
        on, other = reference.sigmoid(s), reference.sigmoid(t)
        expected.append(reference.kl([on, 1 - on], [other, 1 - other]))
    assert bernoulli_kl_from_logits(a, b).tolist() == pytest.approx(expected)
    assert bool((bernoulli_kl_from_logits(a, a) == 0).all())


def test_the_two_forms_agree_over_a_hundred_thousand_classes() -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = 4 * torch.randn(2, 100_000, generator=generator)
    exact = reference.kl_from_logits(a.double().tolist(), b.double().tolist())
    assert float(kl_divergence_from_logits(a, b)) == pytest.approx(exact, rel=1e-4)
    assert float(kl_divergence(torch.softmax(a, -1), torch.softmax(b, -1))) == pytest.approx(exact, rel=1e-4)
