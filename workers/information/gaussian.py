"""Gaussians with diagonal covariance, in closed form.

A Gaussian is given by its mean μ and log-variance log σ², as a network's heads give it. Functions whose name
ends in `_per_dimension` return (..., D); the others sum over the last dimension, since independent
dimensions add. With r = log σ₁² − log σ₂² the divergence is

    KL(N₁‖N₂) = ½ Σ [expm1(r) − r + (μ₁ − μ₂)²/σ₂²],

the textbook ½ Σ [log(σ₂²/σ₁²) + (σ₁² + (μ₁ − μ₂)²)/σ₂² − 1] written so that no term can be negative.

Sources: Kingma & Welling 2014, appendix B; Cover & Thomas, chapter 8.
"""

import math

import torch
from torch import Tensor

from workers.information.probability import promoted
from workers.information.units import in_base


def gaussian_kl_per_dimension(
    mean_p: Tensor, log_var_p: Tensor, mean_q: Tensor, log_var_q: Tensor, *, base: float | None = None
) -> Tensor:
    """KL(N(μ₁, σ₁²)‖N(μ₂, σ₂²)) of each dimension: shapes that broadcast to (..., D) -> (..., D)."""
    log_var_q = promoted(log_var_q)
    log_ratio = promoted(log_var_p) - log_var_q
    # expm1(r) ≥ r; max() undoes a last bit that rounding took.
    spread = (torch.expm1(log_ratio) - log_ratio).clamp(min=0)
    shift = (promoted(mean_p) - promoted(mean_q)).square() * torch.exp(-log_var_q)
    return in_base(0.5 * (spread + shift), base)


def gaussian_kl(
    mean_p: Tensor, log_var_p: Tensor, mean_q: Tensor, log_var_q: Tensor, *, base: float | None = None
) -> Tensor:
    """KL between diagonal Gaussians, summed over the last dimension: (..., D) -> (...)."""
    return gaussian_kl_per_dimension(mean_p, log_var_p, mean_q, log_var_q, base=base).sum(-1)


def kl_to_standard_normal_per_dimension(mean: Tensor, log_var: Tensor, *, base: float | None = None) -> Tensor:
    """KL(N(μ, σ²)‖N(0, 1)) = ½(μ² + σ² − 1 − log σ²) of each dimension: (..., D) -> (..., D)."""
    zero = torch.zeros((), device=mean.device)
    return gaussian_kl_per_dimension(mean, log_var, zero, zero, base=base)


def kl_to_standard_normal(mean: Tensor, log_var: Tensor, *, base: float | None = None) -> Tensor:
    """KL(N(μ, σ²)‖N(0, I)), the rate of a VAE or VIB, summed over the last dimension: (..., D) -> (...)."""
    return kl_to_standard_normal_per_dimension(mean, log_var, base=base).sum(-1)


def gaussian_entropy_per_dimension(log_var: Tensor, *, base: float | None = None) -> Tensor:
    """½ log(2πeσ²) of each dimension: (..., D) -> (..., D)."""
    return in_base(0.5 * (promoted(log_var) + math.log(2 * math.pi * math.e)), base)


def gaussian_entropy(log_var: Tensor, *, base: float | None = None) -> Tensor:
    """Differential entropy ½ Σ log(2πeσ²) of a diagonal Gaussian: (..., D) -> (...).

    It may be negative, and it changes with the unit of measurement: it is no amount of information.
    """
    return gaussian_entropy_per_dimension(log_var, base=base).sum(-1)


def gaussian_negative_log_likelihood(
    target: Tensor, mean: Tensor, log_var: Tensor, *, base: float | None = None
) -> Tensor:
    """(y − ŷ)²/2σ² + ½ log 2πσ², elementwise: shapes that broadcast, no sum taken.

    With σ fixed it is the squared error up to a scale and a constant. That is what MSE means.
    """
    log_var = promoted(log_var)
    error = (promoted(target) - promoted(mean)).square()
    return in_base(0.5 * (error * torch.exp(-log_var) + log_var + math.log(2 * math.pi)), base)
