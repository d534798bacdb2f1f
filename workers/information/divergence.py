"""Divergence: how far one distribution is from another, in nats.

KL(P‖Q) = Σ p log(p/q) is the extra cost of expecting Q when P is true. It is 0 only for P = Q, infinite
where P has mass and Q has none, and not symmetric: forward KL (teacher first) makes the student cover all
that the teacher holds possible, reverse KL makes it avoid what the teacher excludes. Jensen–Shannon is
symmetric, at most log 2, and its square root is a metric.

**Signs.** The textbook sum adds terms of both signs and, for nearly equal distributions in float32, ends in
noise that may be negative. Here each class contributes p log(p/q) − p + q, which is never negative and has
the same sum, since Σp = Σq; near p = q it is taken as p·(d + expm1(−d)) with d = log p − log q.

Rows are returned, nothing is averaged. Sources: Cover & Thomas, chapter 2; Lin 1991 (Jensen–Shannon);
Endres & Schindelin 2003 (the metric); Agarwal et al. 2024 (generalised JS in distillation).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.functional import logsigmoid

from workers.information.probability import (
    checked_distribution,
    log_mixture,
    log_of_probabilities,
    log_softmax,
    promoted,
)
from workers.information.units import in_base


def divergence_terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Divergence per class, p log(p/q) − p + q, from log-probabilities that broadcast; nats, each ≥ 0.

    A class without mass in P contributes q, one with mass in P and none in Q is infinite, with gradient 0.
    """
    terms: Tensor = _DivergenceTerms.apply(*torch.broadcast_tensors(log_p, log_q))  # type: ignore[no-untyped-call]  # torch ships `apply` without types
    return terms


class _DivergenceTerms(torch.autograd.Function):
    """The terms with their gradients in closed form: p·(log p − log q) and q − p.

    Left to autograd, the choice between the two forms would cost several times as much. `backward` is
    made of differentiable operations, so that second derivatives work too.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(log_p: Tensor, log_q: Tensor) -> Tensor:
        p, q = log_p.exp(), log_q.exp()
        without_q = torch.isneginf(log_q)
        # Any difference that is not near 0 does for a class without mass: there the term is q or infinite.
        difference = (log_p - log_q).masked_fill(torch.isneginf(log_p) | without_q, 1)
        # d + expm1(−d) is never negative; max() undoes a last bit that expm1 rounded down.
        close = torch.expm1(-difference).add_(difference).clamp(min=0).mul(p)
        far = (p * difference).sub_(p).add_(q)
        return torch.where(difference.abs() < 0.5, close, far).masked_fill(
            without_q & ~torch.isneginf(log_p), torch.inf
        )

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004  torch's own signature
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        log_p, log_q = ctx.saved_tensors
        p, without_q = log_p.exp(), torch.isneginf(log_q)
        to_p = to_q = None
        if ctx.needs_input_grad[0]:
            to_p = gradient * p * (log_p - log_q).masked_fill(torch.isneginf(log_p) | without_q, 0)
        if ctx.needs_input_grad[1]:
            to_q = gradient * (log_q.exp() - p).masked_fill(without_q, 0)
        return to_p, to_q


def kl_divergence(p: Tensor, q: Tensor, *, dim: int = -1, base: float | None = None) -> Tensor:
    """KL(P‖Q) of two probability tables (..., K) -> (...), in nats or units of `base`.

    Infinite where P has mass and Q has none. The gradient with respect to q is 1 − p/q, which differs from
    −p/q by a constant per row and so is the same on the simplex. Raises ValueError where either is not a
    distribution.
    """
    log_p, log_q = _logs(p, q, dim)
    return in_base(divergence_terms(log_p, log_q).sum(dim), base)


def reverse_kl_divergence(p: Tensor, q: Tensor, *, dim: int = -1, base: float | None = None) -> Tensor:
    """KL(Q‖P) of two probability tables (..., K) -> (...): infinite where Q has mass and P has none."""
    return kl_divergence(q, p, dim=dim, base=base)


def kl_divergence_from_logits(
    logits_p: Tensor, logits_q: Tensor, *, dim: int = -1, base: float | None = None
) -> Tensor:
    """KL(softmax(a)‖softmax(b)) of logits (..., K) -> (...), in nats or units of `base`.

    Finite for finite logits, however small their probabilities; infinite where only `logits_q` masks a
    class by −∞. The gradient with respect to b is softmax(b) − softmax(a).
    """
    return in_base(divergence_terms(log_softmax(logits_p, dim), log_softmax(logits_q, dim)).sum(dim), base)


def reverse_kl_divergence_from_logits(
    logits_p: Tensor, logits_q: Tensor, *, dim: int = -1, base: float | None = None
) -> Tensor:
    """KL(softmax(b)‖softmax(a)) of logits (..., K) -> (...), arguments in the order of the forward one."""
    return kl_divergence_from_logits(logits_q, logits_p, dim=dim, base=base)


def generalised_jensen_shannon(
    p: Tensor, q: Tensor, *, beta: float = 0.5, dim: int = -1, base: float | None = None
) -> Tensor:
    """β KL(P‖M) + (1 − β) KL(Q‖M) with M = βP + (1 − β)Q: tables (..., K) -> (...), 0 < β < 1.

    Always finite: at most −β log β − (1 − β) log(1 − β). Raises ValueError for β outside (0, 1).
    """
    log_p, log_q = _logs(p, q, dim)
    return in_base(_jensen_shannon_terms(log_p, log_q, beta).sum(dim), base)


def generalised_jensen_shannon_from_logits(
    logits_p: Tensor, logits_q: Tensor, *, beta: float = 0.5, dim: int = -1, base: float | None = None
) -> Tensor:
    """Generalised Jensen–Shannon divergence of softmaxed logits (..., K) -> (...); finite, also for −∞."""
    log_p, log_q = log_softmax(logits_p, dim), log_softmax(logits_q, dim)
    return in_base(_jensen_shannon_terms(log_p, log_q, beta).sum(dim), base)


def jensen_shannon(p: Tensor, q: Tensor, *, dim: int = -1, base: float | None = None) -> Tensor:
    """½ KL(P‖M) + ½ KL(Q‖M), M = (P + Q)/2: tables (..., K) -> (...), between 0 and log 2."""
    return generalised_jensen_shannon(p, q, dim=dim, base=base)


def jensen_shannon_from_logits(
    logits_p: Tensor, logits_q: Tensor, *, dim: int = -1, base: float | None = None
) -> Tensor:
    """Jensen–Shannon divergence of softmaxed logits (..., K) -> (...), between 0 and log 2."""
    return generalised_jensen_shannon_from_logits(logits_p, logits_q, dim=dim, base=base)


def bernoulli_kl_from_logits(logits_p: Tensor, logits_q: Tensor, *, base: float | None = None) -> Tensor:
    """KL between Bernoulli variables with P(1) = σ(a) and σ(b), elementwise: the multi-label divergence.

    Any shape, the same shape back; sum over the labels for the divergence of a row of independent labels.
    """
    a, b = promoted(logits_p), promoted(logits_q)
    on = divergence_terms(logsigmoid(a), logsigmoid(b))
    off = divergence_terms(logsigmoid(-a), logsigmoid(-b))
    return in_base(on + off, base)


def _logs(p: Tensor, q: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    p, q = checked_distribution(p, dim, "P"), checked_distribution(q, dim, "Q")
    return log_of_probabilities(p), log_of_probabilities(q)


def _jensen_shannon_terms(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    if not 0 < beta < 1:
        raise ValueError(f"β is {beta}; expected a number strictly between 0 and 1.")
    log_m = log_mixture(log_p, log_q, beta)
    return beta * divergence_terms(log_p, log_m) + (1 - beta) * divergence_terms(log_q, log_m)
