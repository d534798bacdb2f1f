"""From what a job asks for by name to the function that its training minimises.

Every loss has one form, (student's logits, teacher's logits or None, labels or None) -> scalar, so that the
training loop knows nothing of distillation, and the control is the same training under another loss.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from service.contract.specs import KdObjective
from workers.distillation.losses import hard_loss, knowledge_distillation
from workers.training.learner import Loss


def kd(spec: KdObjective) -> Loss:
    """Hinton's loss with the spec's T, α and label smoothing."""
    return partial(
        knowledge_distillation,
        temperature=spec.temperature,
        alpha=spec.alpha,
        label_smoothing=spec.label_smoothing,
    )


OBJECTIVES: dict[str, Callable[[KdObjective], Loss]] = {"kd": kd}


def objective(spec: KdObjective) -> Loss:
    """The loss that a job's objective names."""
    return OBJECTIVES[spec.name](spec)


def labels_only(spec: KdObjective) -> Loss:
    """The control's loss: the objective's own hard term, and no teacher."""

    def loss(student_logits: Tensor, _teacher_logits: Tensor | None, labels: Tensor | None) -> Tensor:
        return hard_loss(student_logits, labels, label_smoothing=spec.label_smoothing)

    return loss
