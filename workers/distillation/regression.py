"""Distillation of networks whose outputs are numbers: squared distances to the labels and to the teacher.

With α = 0 it also distils a classifier, by its logits as they are: the logit matching of Ba and Caruana 2014,
which Hinton's soft term becomes as T grows, for logits of mean 0 (his section 2.1).

Shapes: B examples, K outputs; outputs float (B, K), labels float (B, K), or (B,) where K is 1. Squared units of
the output, averaged over outputs and batch.
"""

from torch import Tensor

from workers.distillation.losses import balanced, present_labels, present_teacher
from workers.information.probability import promoted


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean of (target − output)² over batch and outputs. Raises ValueError for targets of another number."""
    if targets.dim() == 1:
        targets = targets.unsqueeze(-1)
    if targets.shape != outputs.shape:
        raise ValueError(
            f"Targets have shape {tuple(targets.shape)}; expected a number for each output, {tuple(outputs.shape)}."
        )
    values = promoted(outputs)
    return (targets.to(values.dtype) - values).square().mean()


def regression_distillation(
    student_outputs: Tensor,  # (B, K)
    teacher_outputs: Tensor | None,  # (B, K); may be missing when alpha is 1
    labels: Tensor | None,  # (B, K) or (B,); may be missing when alpha is 0
    *,
    alpha: float,
) -> Tensor:
    """α · MSE(student, y) + (1 − α) · MSE(student, teacher).

    Raises ValueError when a term with weight lacks its target.
    """
    return balanced(
        alpha,
        lambda: squared_error(student_outputs, present_labels(labels)),
        lambda: squared_error(student_outputs, present_teacher(teacher_outputs)),
    )
