"""Distillation of networks whose outputs are independent labels, each a yes or no of its own.

The outputs of such a network are no distribution over classes, so that a softmax over them means nothing; each is
the logit of a Bernoulli variable. Both terms are sums over the labels, so that α balances them whatever K is.
Source: Yang et al. 2023 (multi-label logits distillation), with Hinton's temperature and T².

Shapes: B examples, K labels; logits float (B, K), labels 0/1 of any type (B, K). Nats, averaged over the batch.
"""

from torch import Tensor

from workers.distillation.losses import balanced, present_labels, present_teacher
from workers.information.crossentropy import binary_cross_entropy_from_logits
from workers.information.divergence import bernoulli_kl_from_logits


def binary_hard_loss(student_logits: Tensor, labels: Tensor | None) -> Tensor:
    """Σ_k BCE(y_k, σ(s_k)), batch mean. Raises ValueError without labels, or for labels of another shape."""
    y = present_labels(labels)
    if y.shape != student_logits.shape:
        raise ValueError(
            f"Labels have shape {tuple(y.shape)}; expected a 0 or 1 for each output, {tuple(student_logits.shape)}."
        )
    return binary_cross_entropy_from_logits(student_logits, y).sum(-1).mean()


def binary_soft_loss(student_logits: Tensor, teacher_logits: Tensor | None, *, temperature: float) -> Tensor:
    """T² · Σ_k KL(Bernoulli(σ(t_k/T)) ‖ Bernoulli(σ(s_k/T))), batch mean. Raises ValueError without the teacher."""
    teacher = present_teacher(teacher_logits)
    terms = bernoulli_kl_from_logits(teacher / temperature, student_logits / temperature)
    return temperature**2 * terms.sum(-1).mean()


def multilabel_distillation(
    student_logits: Tensor,  # (B, K)
    teacher_logits: Tensor | None,  # (B, K); may be missing when alpha is 1
    labels: Tensor | None,  # (B, K); may be missing when alpha is 0
    *,
    temperature: float,
    alpha: float,
) -> Tensor:
    """α · Σ BCE + (1 − α) · T² · Σ Bernoulli KL. Raises ValueError when a term with weight lacks its target."""
    return balanced(
        alpha,
        lambda: binary_hard_loss(student_logits, labels),
        lambda: binary_soft_loss(student_logits, teacher_logits, temperature=temperature),
    )
