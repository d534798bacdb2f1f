"""What a student is punished for: its distance to the labels and to its teacher.

Hinton, Vinyals and Dean 2015 train a student on two targets at once. The hard one is the label. The soft one
is the teacher's output at temperature T: dividing logits by T > 1 raises the small probabilities, in which the
teacher says which wrong classes are nearly right. The gradient of the soft term shrinks as 1/T² (their section
2.1), so it is multiplied by T², and the balance of both terms survives a change of T.

Shapes: B examples in a batch, K classes; logits are float (B, K), labels int64 (B,). Losses are scalars, means
over the batch, in nats.
"""

from torch import Tensor

from workers.information.crossentropy import cross_entropy_from_logits
from workers.information.divergence import kl_divergence_from_logits


def hard_loss(student_logits: Tensor, labels: Tensor | None, *, label_smoothing: float = 0.0) -> Tensor:
    """CE(student, y), the uniform share `label_smoothing` of the target going to all K classes.

    Raises ValueError without labels.
    """
    if labels is None:
        raise ValueError("The examples have no labels; train on the teacher alone (alpha = 0), or label the data.")
    return cross_entropy_from_logits(student_logits, labels, label_smoothing=label_smoothing).mean()


def soft_loss(student_logits: Tensor, teacher_logits: Tensor | None, *, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher/T) ‖ softmax(student/T)). Raises ValueError without the teacher's logits."""
    if teacher_logits is None:
        raise ValueError("The teacher's logits are missing; compute them first, or train on labels alone (alpha = 1).")
    rows = kl_divergence_from_logits(teacher_logits / temperature, student_logits / temperature)
    return temperature**2 * rows.mean()


def knowledge_distillation(
    student_logits: Tensor,  # (B, K)
    teacher_logits: Tensor | None,  # (B, K); may be missing when alpha is 1
    labels: Tensor | None,  # (B,); may be missing when alpha is 0
    *,
    temperature: float,
    alpha: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """α · CE(student, y) + (1 − α) · T² · KL(softmax(teacher/T) ‖ softmax(student/T)).

    A term without weight is not computed. Raises ValueError when a term with weight lacks its target.
    """
    if alpha == 0:
        return soft_loss(student_logits, teacher_logits, temperature=temperature)
    hard = hard_loss(student_logits, labels, label_smoothing=label_smoothing)
    if alpha == 1:
        return hard
    return alpha * hard + (1 - alpha) * soft_loss(student_logits, teacher_logits, temperature=temperature)
