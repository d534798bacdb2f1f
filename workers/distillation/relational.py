"""DIST: the student's outputs need not be its teacher's, only vary with them.

A strong teacher's probabilities may be out of a small student's reach. Huang et al. 2022 ask for less: that the
two correlate, over the classes of each example (inter-class: which classes are likelier here?) and over the
examples of the batch for each class (intra-class: which examples are more of this class?).

    CE(student, y) + β · T² · mean over rows of (1 − r) + γ · T² · mean over columns of (1 − r)

with r Pearson's correlation of q = softmax(student/T) and p = softmax(teacher/T). The authors' settings are
β = γ = 2 with T = 1 on ImageNet and T = 4 on CIFAR-100.

1 − r is computed as ½‖x̂ − ŷ‖² of the centred, normalised vectors: never negative, and exact near r = 1. Where
a vector does not vary at all, x̂ is 0 and there is nothing to follow.

Shapes: B examples, K classes; logits float (B, K), labels int64 (B,). The batch is part of the loss, so that its
mean over batches depends on how the examples are grouped.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from workers.distillation.losses import hard_loss, tempered
from workers.information.probability import log_softmax

SMALLEST_NORM = 1e-8  # of a centred vector; below it rounding is all that varies


def correlation_distance(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """1 − r of Pearson's correlation along `dim`, between 0 and 2, without that dimension."""
    x, y = (normalize(v - v.mean(dim, keepdim=True), dim=dim, eps=SMALLEST_NORM) for v in (x, y))
    return 0.5 * (x - y).square().sum(dim)


def relational_distillation(
    student_logits: Tensor,  # (B, K)
    teacher_logits: Tensor | None,  # (B, K); may be missing when no correlation has weight
    labels: Tensor | None,  # (B,); may be missing when hard_weight is 0
    *,
    temperature: float,
    inter_weight: float,
    intra_weight: float,
    hard_weight: float = 1.0,
    label_smoothing: float = 0.0,
    standardize: bool = False,
) -> Tensor:
    """hard_weight · CE(student, y) + T² · (inter_weight · (1 − r) of rows + intra_weight · (1 − r) of columns).

    A term without weight is not computed. Raises ValueError when a term with weight lacks its target.
    """
    terms = []
    if hard_weight:
        terms.append(hard_weight * hard_loss(student_logits, labels, label_smoothing=label_smoothing))
    if inter_weight or intra_weight:
        student, teacher = tempered(student_logits, teacher_logits, temperature=temperature, standardize=standardize)
        q, p = log_softmax(student, -1).exp(), log_softmax(teacher, -1).exp()
        inter, intra = correlation_distance(q, p, -1).mean(), correlation_distance(q, p, 0).mean()
        terms.append(temperature**2 * (inter_weight * inter + intra_weight * intra))
    return torch.stack(terms).sum()
