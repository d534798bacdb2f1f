"""Decoupled distillation: the target class against the rest, and the rest among themselves, each with its weight.

With p_y the teacher's probability of the label at temperature T, the divergence of Hinton's loss falls apart into

    KL(p ‖ q) = KL(b_t ‖ b_s) + (1 − p_y) · KL(p̂ ‖ q̂)

where b = (p_y, 1 − p_y) says how hard the example is, and p̂, q̂ are the distributions over the other classes
(Zhao et al. 2022, equation 7). The more certain the teacher, the less it is heard on the second part, which teaches
the most. The paper gives both parts weights of their own instead: 1 and 8 at T = 4 on CIFAR-100, the sum growing
from 1/20 to its full weight over the first 20 epochs.

Both parts are exact for any logits: the first is a Bernoulli divergence of margins z_y − logsumexp of the others,
the second a divergence of logits whose target is masked by −∞ (the authors' code subtracts 1000).

Shapes: B examples, K classes; logits float (B, K), labels int64 (B,).
"""

import math

import torch
from torch import Tensor

from workers.distillation.losses import hard_loss, present_labels, tempered
from workers.information.divergence import bernoulli_kl_from_logits, kl_divergence_from_logits


def target_divergence(teacher: Tensor, student: Tensor, labels: Tensor) -> Tensor:
    """TCKD: KL between (p_y, 1 − p_y) of both, logits (B, K) -> nats (B,)."""
    return bernoulli_kl_from_logits(_margins(teacher, labels), _margins(student, labels))


def non_target_divergence(teacher: Tensor, student: Tensor, labels: Tensor) -> Tensor:
    """NCKD: KL between the distributions over the classes other than y, logits (B, K) -> nats (B,)."""
    return kl_divergence_from_logits(_others(teacher, labels), _others(student, labels))


def decoupled_distillation(
    student_logits: Tensor,  # (B, K)
    teacher_logits: Tensor | None,  # (B, K); may be missing when no soft term has weight
    labels: Tensor | None,  # (B,)
    *,
    temperature: float,
    target_weight: float,
    non_target_weight: float,
    warmup: float = 1.0,
    hard_weight: float = 1.0,
    label_smoothing: float = 0.0,
    standardize: bool = False,
) -> Tensor:
    """hard_weight · CE(student, y) + warmup · T² · (target_weight · TCKD + non_target_weight · NCKD), batch mean.

    A term without weight is not computed. Raises ValueError without labels, or the teacher where it is needed.
    """
    y = present_labels(labels)
    terms = []
    if hard_weight:
        terms.append(hard_weight * hard_loss(student_logits, y, label_smoothing=label_smoothing))
    if target_weight or non_target_weight:
        student, teacher = tempered(student_logits, teacher_logits, temperature=temperature, standardize=standardize)
        rows = target_weight * target_divergence(teacher, student, y)
        rows = rows + non_target_weight * non_target_divergence(teacher, student, y)
        terms.append(warmup * temperature**2 * rows.mean())
    return torch.stack(terms).sum()


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(-1, labels.unsqueeze(-1), -math.inf)


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    target = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return target - _others(logits, labels).logsumexp(-1)
