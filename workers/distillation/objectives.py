"""From what a job asks for by name to the function that its training minimises.

Every loss has one form, (student's logits, teacher's logits or None, labels or None) -> scalar, so that the
training loop knows nothing of distillation, and the control is the same training under another loss.

What changes over a training is a function of the epoch and the share of steps done, and nothing else. A loss that
is called as it is is the one that the training ends with: by it validation judges all epochs alike.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from service.contract.objectives import (
    BernoulliObjective,
    DecoupledObjective,
    KdObjective,
    Objective,
    RelationalObjective,
    SquaredErrorObjective,
)
from workers.distillation.decoupled import decoupled_distillation
from workers.distillation.losses import hard_loss, knowledge_distillation
from workers.distillation.multilabel import binary_hard_loss, multilabel_distillation
from workers.distillation.ramps import value_at
from workers.distillation.regression import regression_distillation, squared_error
from workers.distillation.relational import relational_distillation
from workers.training.learner import Loss


@dataclass(frozen=True)
class Moment:
    """A place in a training."""

    epoch: float  # from 1
    share: float  # of all steps, those before this one: from 0 to below 1


END = Moment(math.inf, 1.0)

Inputs = tuple[Tensor, Tensor | None, Tensor | None]  # the student's logits, the teacher's, and labels


def kd(spec: KdObjective, moment: Moment, inputs: Inputs) -> Tensor:
    """Hinton's loss, with its divergence."""
    return spec.weight * knowledge_distillation(
        *inputs,
        temperature=value_at(spec.temperature, moment.share),
        alpha=value_at(spec.alpha, moment.share),
        label_smoothing=spec.label_smoothing,
        divergence=spec.divergence,
        beta=spec.beta,
        standardize=spec.standardize,
    )


def dkd(spec: DecoupledObjective, moment: Moment, inputs: Inputs) -> Tensor:
    """Decoupled distillation, its soft terms warming up."""
    return decoupled_distillation(
        *inputs,
        temperature=value_at(spec.temperature, moment.share),
        target_weight=spec.target_weight,
        non_target_weight=spec.non_target_weight,
        warmup=min(moment.epoch / spec.warmup_epochs, 1.0) if spec.warmup_epochs else 1.0,
        hard_weight=spec.hard_weight,
        label_smoothing=spec.label_smoothing,
        standardize=spec.standardize,
    )


def dist(spec: RelationalObjective, moment: Moment, inputs: Inputs) -> Tensor:
    """DIST."""
    return relational_distillation(
        *inputs,
        temperature=value_at(spec.temperature, moment.share),
        inter_weight=spec.inter_weight,
        intra_weight=spec.intra_weight,
        hard_weight=spec.hard_weight,
        label_smoothing=spec.label_smoothing,
        standardize=spec.standardize,
    )


def bernoulli(spec: BernoulliObjective, moment: Moment, inputs: Inputs) -> Tensor:
    """The multi-label loss."""
    temperature, alpha = value_at(spec.temperature, moment.share), value_at(spec.alpha, moment.share)
    return multilabel_distillation(*inputs, temperature=temperature, alpha=alpha)


def mse(spec: SquaredErrorObjective, moment: Moment, inputs: Inputs) -> Tensor:
    """Squared distances."""
    return regression_distillation(*inputs, alpha=value_at(spec.alpha, moment.share))


OBJECTIVES: dict[str, Callable[[Any, Moment, Inputs], Tensor]] = {
    "kd": kd,
    "dkd": dkd,
    "dist": dist,
    "bernoulli": bernoulli,
    "mse": mse,
}


@dataclass(frozen=True)
class ObjectiveLoss:
    """The loss that a job's objective names, and what it is at each moment of a training."""

    spec: Objective

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor | None) -> Tensor:
        """The loss as it is when everything that changes has come to its end."""
        return OBJECTIVES[self.spec.name](self.spec, END, (student_logits, teacher_logits, labels))

    def at(self, epoch: int, share: float) -> Loss:
        """The loss in an epoch (from 1), when `share` of all steps are done."""
        moment = Moment(epoch, share)

        def loss(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor | None) -> Tensor:
            return OBJECTIVES[self.spec.name](self.spec, moment, (student_logits, teacher_logits, labels))

        return loss


def objective(spec: Objective) -> ObjectiveLoss:
    """The loss that a job's objective names."""
    return ObjectiveLoss(spec)


def labels_only(spec: Objective) -> Loss:
    """The control's loss: the objective's own hard term, and no teacher.

    Where an objective for other labels distils a classifier without its labels, the classes still mean
    cross-entropy.
    """
    smoothing = getattr(spec, "label_smoothing", 0.0)

    def loss(student_logits: Tensor, _teacher_logits: Tensor | None, labels: Tensor | None) -> Tensor:
        if labels is None or _are_classes(labels):
            return hard_loss(student_logits, labels, label_smoothing=smoothing)
        if spec.task == "multilabel":
            return binary_hard_loss(student_logits, labels)
        return squared_error(student_logits, labels)

    return loss


def _are_classes(labels: Tensor) -> bool:
    return labels.dim() == 1 and labels.dtype == torch.int64
