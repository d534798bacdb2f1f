"""Mutual information: what one variable tells about another.

I(X;Y) = KL(P(X,Y)‖P(X)P(Y)) = H(X) − H(X|Y) = H(X) + H(Y) − H(X,Y). It is symmetric, never negative, 0
only for independent variables, and I(X;X) = H(X).

For a classifier, I(X;Ŷ) = H(p̄) − E H(p), with p̄ the mean prediction, is what its outputs claim to tell
about their inputs: high when each prediction is sure and the predictions differ. It takes the model at its
word, so it is a fact about the world only when the model is calibrated.

Shapes: a joint table is (..., |X|, |Y|); logits are (..., N, K), N inputs and K classes.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from workers.information.divergence import divergence_terms
from workers.information.entropy import (
    conditional_entropy,
    entropy_from_logits,
    joint_entropy,
    marginal_entropy,
)
from workers.information.probability import (
    checked_distribution,
    log_mean,
    log_of_probabilities,
    log_softmax,
    weighted,
)
from workers.information.units import in_base

MutualInformationForm = Literal["divergence", "conditional", "entropies"]


def _by_divergence(joint: Tensor) -> Tensor:
    joint = checked_distribution(joint, (-2, -1), "The joint table")
    log_x = log_of_probabilities(joint.sum(-1, keepdim=True))
    log_y = log_of_probabilities(joint.sum(-2, keepdim=True))
    return divergence_terms(log_of_probabilities(joint), log_x + log_y).sum((-2, -1))


def _by_conditional_entropy(joint: Tensor) -> Tensor:
    return marginal_entropy(joint, of="x") - conditional_entropy(joint, given="y")


def _by_entropies(joint: Tensor) -> Tensor:
    return marginal_entropy(joint, of="x") + marginal_entropy(joint, of="y") - joint_entropy(joint)


#: The three forms; they agree up to rounding, and only the first cannot round below zero.
FORMS: dict[MutualInformationForm, Callable[[Tensor], Tensor]] = {
    "divergence": _by_divergence,
    "conditional": _by_conditional_entropy,
    "entropies": _by_entropies,
}


def mutual_information(
    joint: Tensor, *, form: MutualInformationForm = "divergence", base: float | None = None
) -> Tensor:
    """I(X;Y) of a joint table (..., |X|, |Y|) -> (...), in nats or units of `base`.

    Raises ValueError where the table is negative or does not sum to 1. For a table of *counts* use
    `estimators.estimate_mutual_information`, which knows about the bias of a finite sample.
    """
    return in_base(FORMS[form](joint), base)


def predictive_entropy(logits: Tensor, *, base: float | None = None) -> Tensor:
    """E H(p), the mean entropy of the predictions: logits (..., N, K) -> (...)."""
    return entropy_from_logits(logits, base=base).mean(-1)


def entropy_of_mean_prediction(logits: Tensor, *, base: float | None = None) -> Tensor:
    """H(p̄), the entropy of the mean prediction: logits (..., N, K) -> (...); at most log K."""
    log_mean_p = log_mean(log_softmax(logits, -1), -2).squeeze(-2)
    return in_base(weighted(log_mean_p.exp(), -log_mean_p).sum(-1), base)


def predictive_information(logits: Tensor, *, base: float | None = None) -> Tensor:
    """I(X;Ŷ) = H(p̄) − E H(p) of logits (..., N, K) -> (...), in nats or units of `base`.

    Summed as E KL(p‖p̄), which is the same and cannot round below zero. Takes 1/N for each input.
    """
    log_p = log_softmax(logits, -1)
    return in_base(divergence_terms(log_p, log_mean(log_p, -2)).sum(-1).mean(-1), base)
