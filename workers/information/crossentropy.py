"""Cross-entropy: what it costs to expect Q when P is true.

H(P,Q) = −Σ p log q = H(P) + KL(P‖Q). With one-hot P it is the negative log-likelihood that classifiers
minimise; since H(P) does not depend on the model, minimising it minimises the divergence.

Nothing is averaged here: each function returns one value per row (per element for the binary ones), and
the training loop decides on the mean. The forms from logits are the losses of training.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from workers.information.probability import (
    checked_distribution,
    log_of_probabilities,
    log_softmax,
    promoted,
    weighted,
)
from workers.information.units import in_base


def cross_entropy(p: Tensor, q: Tensor, *, dim: int = -1, base: float | None = None) -> Tensor:
    """H(P,Q) = −Σ p log q of two probability tables (..., K) -> (...), in nats or units of `base`.

    Infinite where P has mass and Q has none. Raises ValueError where either is not a distribution.
    """
    p = checked_distribution(p, dim, "P")
    q = checked_distribution(q, dim, "Q")
    return in_base(weighted(p, -log_of_probabilities(q)).sum(dim), base)


def smoothed_targets(
    target: Tensor, num_classes: int, smoothing: float, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(1 − ε)·onehot(target) + ε/K: int64 classes (...) -> probabilities (..., K).

    The uniform share ε goes to all K classes, the true one among them, which therefore gets 1 − ε + ε/K.
    Source: Szegedy et al. 2016, section 7.
    """
    _check_smoothing(smoothing)
    one_hot = torch.nn.functional.one_hot(target, num_classes).to(dtype)
    return (1 - smoothing) * one_hot + smoothing / num_classes


def cross_entropy_from_logits(
    logits: Tensor,
    target: Tensor,
    *,
    dim: int = -1,
    label_smoothing: float = 0.0,
    base: float | None = None,
) -> Tensor:
    """H(target, softmax(z)) of logits (..., K) -> (...), one value per row, by log-sum-exp.

    `target` is int64 classes (...) (hard), or probabilities (..., K) shaped as the logits (soft), which are
    trusted to sum to 1. Label smoothing ε mixes the target with the uniform distribution over all K
    classes. Raises ValueError for a target of another shape, a class outside 0..K−1, or ε outside [0, 1].
    """
    _check_smoothing(label_smoothing)
    log_q = log_softmax(logits, dim)
    loss = _soft(log_q, target, dim) if target.is_floating_point() else _hard(log_q, target, dim)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * log_q.mean(dim)
    return in_base(loss, base)


def binary_cross_entropy(p: Tensor, target: Tensor, *, base: float | None = None) -> Tensor:
    """−t log p − (1 − t) log(1 − p) of probabilities and targets in [0, 1], elementwise.

    Both have the same shape (or broadcast). Infinite where p is certain of what is not so. Raises ValueError
    where p is outside [0, 1].
    """
    p, target = promoted(p), target.to(promoted(p).dtype)
    if not bool(((p >= 0) & (p <= 1)).detach().all()):
        raise ValueError("A probability lies outside [0, 1]; for logits use binary_cross_entropy_from_logits.")
    # log1p keeps log(1 − p) exact for a p that 1 − p would round away.
    below_one = p < 1
    log_off = torch.where(below_one, torch.log1p(-torch.where(below_one, p, 0)), -torch.inf)
    return in_base(weighted(target, -log_of_probabilities(p)) + weighted(1 - target, -log_off), base)


def binary_cross_entropy_from_logits(logits: Tensor, target: Tensor, *, base: float | None = None) -> Tensor:
    """Binary cross-entropy of P(1) = σ(z) against targets in [0, 1], elementwise; stable at any logit."""
    z = promoted(logits)
    target = target.to(z.dtype)
    return in_base(weighted(target, -logsigmoid(z)) + weighted(1 - target, -logsigmoid(-z)), base)


def _soft(log_q: Tensor, target: Tensor, dim: int) -> Tensor:
    if target.shape != log_q.shape:
        raise ValueError(
            f"Soft targets have shape {tuple(target.shape)}; expected that of the logits, {tuple(log_q.shape)}."
        )
    return weighted(target.to(log_q.dtype), -log_q).sum(dim)


def _hard(log_q: Tensor, target: Tensor, dim: int) -> Tensor:
    rows = log_q.select(dim, 0).shape
    if target.shape != rows:
        raise ValueError(f"Class targets have shape {tuple(target.shape)}; expected one class per row, {tuple(rows)}.")
    try:
        picked = log_q.gather(dim, target.long().unsqueeze(dim))
    except RuntimeError as error:
        raise ValueError(f"A target class is outside 0..{log_q.shape[dim] - 1}: {error}") from error
    return -picked.squeeze(dim)


def _check_smoothing(smoothing: float) -> None:
    if not 0 <= smoothing <= 1:
        raise ValueError(f"Label smoothing is {smoothing}; expected a number in [0, 1].")
