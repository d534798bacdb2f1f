"""Entropy: how much is unknown before the outcome is seen.

H(P) = −Σ p log p is the mean number of nats (bits with `base=2`) that an outcome drawn from P tells. It is
0 when one outcome is certain and log K when K outcomes are equally likely. With two variables,
H(X,Y) = H(X) + H(Y|X): what both tell is what the first tells and what the second adds.

Shapes: K classes along `dim`, everything else is batch and is returned; a joint table is (..., |X|, |Y|).
Source: Cover & Thomas, Elements of Information Theory, 2nd ed., chapter 2.
"""

from typing import Literal

import torch
from torch import Tensor

from workers.information.probability import (
    checked_distribution,
    log_of_probabilities,
    log_softmax,
    promoted,
    weighted,
)
from workers.information.units import in_base

Variable = Literal["x", "y"]

#: Where a joint table keeps each variable.
AXES: dict[Variable, int] = {"x": -2, "y": -1}


def entropy(p: Tensor, *, dim: int = -1, base: float | None = None) -> Tensor:
    """H(P) = −Σ p log p of probabilities (..., K) -> (...), in nats or units of `base`; 0 log 0 = 0.

    The gradient is −log p − 1, and 0 at an exactly zero p. Raises ValueError where `p` is negative or does
    not sum to 1, TypeError for integers.
    """
    p = checked_distribution(p, dim)
    return in_base(weighted(p, -log_of_probabilities(p)).sum(dim), base)


def entropy_from_logits(logits: Tensor, *, dim: int = -1, base: float | None = None) -> Tensor:
    """H(softmax(z)) of logits (..., K) -> (...), in nats or units of `base`.

    Value and gradient stay finite where the softmax underflows, and where a class is masked by −∞.
    """
    log_p = log_softmax(logits, dim)
    return in_base(weighted(log_p.exp(), -log_p).sum(dim), base)


def bernoulli_entropy_from_logits(logits: Tensor, *, base: float | None = None) -> Tensor:
    """Entropy of each Bernoulli variable with P(1) = σ(z): any shape, the same shape back."""
    on = torch.nn.functional.logsigmoid(promoted(logits))
    off = torch.nn.functional.logsigmoid(-promoted(logits))
    return in_base(weighted(on.exp(), -on) + weighted(off.exp(), -off), base)


def joint_entropy(joint: Tensor, *, base: float | None = None) -> Tensor:
    """H(X,Y) of a joint table (..., |X|, |Y|) -> (...), in nats or units of `base`."""
    joint = checked_distribution(joint, (-2, -1), "The joint table")
    return in_base(weighted(joint, -log_of_probabilities(joint)).sum((-2, -1)), base)


def marginal(joint: Tensor, *, of: Variable) -> Tensor:
    """P(X) (..., |X|) or P(Y) (..., |Y|) of a joint table (..., |X|, |Y|)."""
    other: Variable = "y" if of == "x" else "x"
    return checked_distribution(joint, (-2, -1), "The joint table").sum(AXES[other])


def marginal_entropy(joint: Tensor, *, of: Variable, base: float | None = None) -> Tensor:
    """H(X) or H(Y) of a joint table (..., |X|, |Y|) -> (...), in nats or units of `base`."""
    p = marginal(joint, of=of)
    return in_base(weighted(p, -log_of_probabilities(p)).sum(-1), base)


def conditional_entropy(joint: Tensor, *, given: Variable = "x", base: float | None = None) -> Tensor:
    """H(Y|X), or H(X|Y) with `given="y"`, of a joint table (..., |X|, |Y|) -> (...).

    Equal to H(X,Y) − H(X), but summed as −Σ p(x,y) log(p(x,y)/p(x)), whose terms are never negative, so
    that no small difference of large numbers loses its sign.
    """
    joint = checked_distribution(joint, (-2, -1), "The joint table")
    other: Variable = "y" if given == "x" else "x"
    mass = joint.sum(AXES[other], keepdim=True)
    log_conditional = log_of_probabilities(joint) - log_of_probabilities(torch.where(mass > 0, mass, 1))
    return in_base(weighted(joint, -log_conditional.clamp(max=0)).sum((-2, -1)), base)
