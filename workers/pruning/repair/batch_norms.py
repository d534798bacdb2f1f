"""A batch norm behind a layer that was solved for: it passes on what the solution says, and can go on training."""

import torch
from torch import Tensor, nn

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def statistics(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Its running mean and variance, which it has."""
    assert norm.running_mean is not None  # noqa: S101  asked only of norms that keep statistics
    assert norm.running_var is not None  # noqa: S101  as above
    return norm.running_mean, norm.running_var


def scale_and_shift(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """What the norm does in evaluation mode is v * scale + shift: (M,) each, float64."""
    mean, variance = (part.double() for part in statistics(norm))
    scale = norm.weight.double() / (variance + norm.eps).sqrt()
    return scale, norm.bias.double() - mean * scale


def rewrite_norm(norm: BatchNorm, mean: Tensor, variance: Tensor, bias: Tensor) -> None:
    """Let `norm` give W x + bias in evaluation mode, of a layer that now gives W x.

    `mean` and `variance` (M,) are those of W x over the calibration set, W·ā and diag(W cov(A) Wᵀ). They become the
    running statistics, so that training, whose batches have about the same, goes on from the same outputs;
    γ = √(var + ε) and β = bias + W·ā undo them.
    """
    running_mean, running_var = statistics(norm)
    running_mean.copy_(mean)
    running_var.copy_(variance)
    norm.weight.copy_(torch.sqrt(running_var + norm.eps))
    norm.bias.copy_(bias + mean)
