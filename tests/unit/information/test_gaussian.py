import math

import pytest
import scipy.stats
import torch

from tests.reference import information as reference
from workers.information.gaussian import (
    gaussian_entropy,
    gaussian_entropy_per_dimension,
    gaussian_kl,
    gaussian_kl_per_dimension,
    gaussian_negative_log_likelihood,
    kl_to_standard_normal,
    kl_to_standard_normal_per_dimension,
)


def test_gaussian_kl_follows_its_formula_per_dimension_and_summed() -> None:
    mean_p, log_var_p, mean_q, log_var_q = torch.randn(4, 3, 5, dtype=torch.float64)
    values = gaussian_kl_per_dimension(mean_p, log_var_p, mean_q, log_var_q)
    columns = zip(*(x.flatten().tolist() for x in (mean_p, log_var_p, mean_q, log_var_q)), strict=True)
    expected = [reference.gaussian_kl(m, math.exp(v), n, math.exp(w)) for m, v, n, w in columns]
    assert values.flatten().tolist() == pytest.approx(expected)
    torch.testing.assert_close(gaussian_kl(mean_p, log_var_p, mean_q, log_var_q), values.sum(-1))


def test_gaussian_kl_agrees_with_torch_distributions() -> None:
    mean_p, log_var_p, mean_q, log_var_q = torch.randn(4, 20, dtype=torch.float64)
    p = torch.distributions.Normal(mean_p, (log_var_p / 2).exp())
    q = torch.distributions.Normal(mean_q, (log_var_q / 2).exp())
    torch.testing.assert_close(
        gaussian_kl_per_dimension(mean_p, log_var_p, mean_q, log_var_q),
        torch.distributions.kl_divergence(p, q),
    )


def test_kl_to_the_standard_normal_is_the_rate_of_a_vae() -> None:
    mean, log_var = torch.randn(2, 4, 6)
    rate = 0.5 * (mean**2 + log_var.exp() - 1 - log_var)
    torch.testing.assert_close(kl_to_standard_normal_per_dimension(mean, log_var), rate)
    torch.testing.assert_close(kl_to_standard_normal(mean, log_var, base=2), rate.sum(-1) / math.log(2))
    assert float(kl_to_standard_normal(torch.zeros(3), torch.zeros(3))) == 0.0


def test_gaussian_kl_of_nearly_equal_gaussians_keeps_its_sign_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    log_var_p = torch.randn(100_000, generator=generator)
    log_var_q = log_var_p + 1e-6 * torch.randn(100_000, generator=generator)
    zero = torch.zeros(())
    assert float(gaussian_kl_per_dimension(zero, log_var_p, zero, log_var_q).min()) >= 0.0


def test_gaussian_kl_has_the_gradient_of_finite_differences() -> None:
    inputs = tuple(torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(4))
    assert torch.autograd.gradcheck(gaussian_kl, inputs)


def test_bfloat16_heads_are_measured_in_single_precision() -> None:
    mean, log_var = torch.randn(2, 8).bfloat16()
    assert kl_to_standard_normal(mean, log_var).dtype == torch.float32


def test_differential_entropy_agrees_with_scipy_and_may_be_negative() -> None:
    log_var = torch.tensor([-6.0, 0.0, 3.0], dtype=torch.float64)
    oracle = scipy.stats.norm(scale=(log_var / 2).exp().numpy()).entropy()
    assert gaussian_entropy_per_dimension(log_var).tolist() == pytest.approx(oracle.tolist())
    by_formula = [reference.gaussian_entropy(math.exp(v)) for v in log_var.tolist()]
    assert float(gaussian_entropy(log_var)) == pytest.approx(sum(by_formula))
    assert float(gaussian_entropy(log_var[:1])) < 0


def test_gaussian_likelihood_agrees_with_scipy_and_explains_the_squared_error() -> None:
    y, mean, log_var = torch.randn(3, 7, dtype=torch.float64)
    values = gaussian_negative_log_likelihood(y, mean, log_var)
    oracle = -scipy.stats.norm(mean.numpy(), (log_var / 2).exp().numpy()).logpdf(y.numpy())
    assert values.tolist() == pytest.approx(oracle.tolist())
    by_formula = reference.gaussian_negative_log_likelihood(float(y[0]), float(mean[0]), math.exp(float(log_var[0])))
    assert float(values[0]) == pytest.approx(by_formula)
    unit = gaussian_negative_log_likelihood(y, mean, torch.zeros(()))
    torch.testing.assert_close(unit - 0.5 * math.log(2 * math.pi), 0.5 * (y - mean) ** 2)
