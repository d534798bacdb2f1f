"""Probabilities and their logarithms, with 0 log 0 = 0 and nothing clamped.

Two forms come in. *Probabilities* are what a person has in a table: they are checked (no negative entry,
sum 1), since counts passed by mistake would give a number that means nothing. *Logits* are what a network
has: they are never checked, so that a loss on a GPU does not wait for the device.

Both become log-probabilities, where a class without mass is −∞ and one whose probability underflows keeps
its finite logarithm. Half-precision inputs are computed, and answered, in float32: in bfloat16 the result
of a sum of ten terms has no sign left.

At an exact zero the derivative of p log p is infinite, and a chain rule through a softmax would make it
0·∞ = NaN. Here the term of an exactly zero probability counts as absent, and its gradient is 0.
"""

import math

import torch
from torch import Tensor

#: How far a sum of probabilities may be from 1. bfloat16 keeps 8 bits, so its entries may be 0.4% off.
SUM_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}


def promoted(x: Tensor) -> Tensor:
    """Return `x` in the precision that measures are computed in: float32, or float64 if it is that."""
    if not x.is_floating_point():
        raise TypeError(f"The tensor is {x.dtype}; expected a floating type. Convert it with `.float()`.")
    return x if x.dtype == torch.float64 else x.float()


def checked_distribution(p: Tensor, dim: int | tuple[int, ...], name: str = "The distribution") -> Tensor:
    """Return `p` promoted, or raise ValueError unless it is non-negative and sums to 1 along `dim`."""
    values = promoted(p)
    detached = values.detach()
    if not bool((detached >= 0).all()):
        raise ValueError(
            f"{name} has a negative or NaN entry; expected probabilities. For logits, use the "
            "function whose name ends in `_from_logits`."
        )
    total = detached.sum(dim)
    if not bool(((total - 1).abs() <= SUM_TOLERANCE[p.dtype]).all()):
        worst = float(total.flatten()[(total - 1).abs().argmax()])
        raise ValueError(
            f"{name} sums to {worst:.6g} along dimension {dim}; expected 1. Divide by the sum, "
            "or pass counts to an estimator."
        )
    return values


def log_of_probabilities(p: Tensor) -> Tensor:
    """Natural logarithm of `p` (any shape): −∞, with gradient 0, where p is exactly 0."""
    present = p > 0
    return torch.where(present, torch.where(present, p, 1).log(), -math.inf)


def log_softmax(logits: Tensor, dim: int) -> Tensor:
    """Log-probabilities of logits (any shape), in float32 or float64."""
    return torch.log_softmax(promoted(logits), dim)


def weighted(weight: Tensor, value: Tensor) -> Tensor:
    """weight·value, where a weight of exactly 0 makes even an infinite value vanish (0·∞ = 0)."""
    return weight * torch.where((weight == 0) & torch.isinf(value), 0, value)


def log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """log(share·p + (1 − share)·q) from log-probabilities; `torch.logaddexp` has NaN gradients at −∞, −∞."""
    absent = torch.isneginf(log_p) & torch.isneginf(log_q)
    left = torch.where(absent, 0, log_p) + math.log(share)
    right = torch.where(absent, 0, log_q) + math.log1p(-share)
    return torch.where(absent, -math.inf, torch.logaddexp(left, right))


def log_mean(log_p: Tensor, dim: int) -> Tensor:
    """Logarithm of the mean of probabilities along `dim`, from log-probabilities; that dimension is kept.

    A class that no row gives mass to is −∞, with gradient 0.
    """
    absent = torch.isneginf(log_p).all(dim, keepdim=True)
    summed = torch.logsumexp(torch.where(absent, 0, log_p), dim, keepdim=True)
    return torch.where(absent, -math.inf, summed - math.log(log_p.shape[dim]))
