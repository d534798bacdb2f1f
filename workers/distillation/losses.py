"""What a student is punished for: its distance to the labels and to its teacher.

Hinton, Vinyals and Dean 2015 train a student on two targets at once. The hard one is the label. The soft one
is the teacher's output at temperature T: dividing logits by T > 1 raises the small probabilities, in which the
teacher says which wrong classes are nearly right. The gradient of the soft term shrinks as 1/T² (their section
2.1), so it is multiplied by T², and the balance of both terms survives a change of T.

The soft term is a divergence between p = softmax(teacher/T) and q = softmax(student/T):

    forward_kl       KL(p ‖ q)                                  the default; q must cover all of p
    reverse_kl       KL(q ‖ p)                                  q must avoid what p excludes
    jensen_shannon   β KL(p ‖ m) + (1 − β) KL(q ‖ m)            m = βp + (1 − β)q; bounded (Agarwal et al. 2024)

Shapes: B examples in a batch, K classes; logits are float (B, K), labels int64 (B,). Losses are scalars, means
over the batch, in nats.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from workers.distillation.standardization import standardized
from workers.information.crossentropy import cross_entropy_from_logits
from workers.information.divergence import (
    generalised_jensen_shannon_from_logits,
    kl_divergence_from_logits,
    reverse_kl_divergence_from_logits,
)

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]
DIVERGENCES: dict[Divergence, Callable[[Tensor, Tensor, float], Tensor]] = {
    "forward_kl": lambda teacher, student, _beta: kl_divergence_from_logits(teacher, student),
    "reverse_kl": lambda teacher, student, _beta: reverse_kl_divergence_from_logits(teacher, student),
    "jensen_shannon": lambda teacher, student, beta: generalised_jensen_shannon_from_logits(
        teacher, student, beta=beta
    ),
}


def present_labels(labels: Tensor | None) -> Tensor:
    """Return the labels. Raises ValueError where there are none."""
    if labels is None:
        raise ValueError("The examples have no labels; train on the teacher alone (alpha = 0), or label the data.")
    return labels


def present_teacher(teacher_logits: Tensor | None) -> Tensor:
    """Return the teacher's logits. Raises ValueError where there are none."""
    if teacher_logits is None:
        raise ValueError("The teacher's logits are missing; compute them first, or train on labels alone (alpha = 1).")
    return teacher_logits


def tempered(
    student_logits: Tensor, teacher_logits: Tensor | None, *, temperature: float, standardize: bool = False
) -> tuple[Tensor, Tensor]:
    """Logits of student and teacher (B, K) over T, z-scored before if asked. Raises ValueError without a teacher."""
    student, teacher = student_logits, present_teacher(teacher_logits)
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    return student / temperature, teacher / temperature


def hard_loss(student_logits: Tensor, labels: Tensor | None, *, label_smoothing: float = 0.0) -> Tensor:
    """CE(student, y), the uniform share `label_smoothing` of the target going to all K classes.

    Raises ValueError without labels.
    """
    rows = cross_entropy_from_logits(student_logits, present_labels(labels), label_smoothing=label_smoothing)
    return rows.mean()


def soft_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    *,
    temperature: float,
    divergence: Divergence = "forward_kl",
    beta: float = 0.5,
    standardize: bool = False,
) -> Tensor:
    """T² · D(softmax(teacher/T), softmax(student/T)). Raises ValueError without the teacher's logits."""
    student, teacher = tempered(student_logits, teacher_logits, temperature=temperature, standardize=standardize)
    return temperature**2 * DIVERGENCES[divergence](teacher, student, beta).mean()


def balanced(alpha: float, hard: Callable[[], Tensor], soft: Callable[[], Tensor]) -> Tensor:
    """α · hard + (1 − α) · soft; a term without weight is not computed, and may lack its target."""
    if alpha == 0:
        return soft()
    if alpha == 1:
        return hard()
    return alpha * hard() + (1 - alpha) * soft()


def knowledge_distillation(
    student_logits: Tensor,  # (B, K)
    teacher_logits: Tensor | None,  # (B, K); may be missing when alpha is 1
    labels: Tensor | None,  # (B,); may be missing when alpha is 0
    *,
    temperature: float,
    alpha: float,
    label_smoothing: float = 0.0,
    divergence: Divergence = "forward_kl",
    beta: float = 0.5,
    standardize: bool = False,
) -> Tensor:
    """α · CE(student, y) + (1 − α) · T² · D(softmax(teacher/T), softmax(student/T)), D by default forward KL.

    A term without weight is not computed. Raises ValueError when a term with weight lacks its target.
    """
    return balanced(
        alpha,
        lambda: hard_loss(student_logits, labels, label_smoothing=label_smoothing),
        lambda: soft_loss(
            student_logits,
            teacher_logits,
            temperature=temperature,
            divergence=divergence,
            beta=beta,
            standardize=standardize,
        ),
    )
