"""A model that learns from one batch at a time: the forward pass, the gradient, and the step downhill."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from service.contract.errors import FieldError, Invalid
from service.contract.specs import Training
from workers.training.optimizers import optimizer_of, set_learning_rate
from workers.training.precision import Precision, autocast, gradient_scaler, resolve_precision

Loss = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


@runtime_checkable
class ChangingLoss(Protocol):
    """A loss that changes over a training; called as it is, it is the one that the training ends with.

    What it is at a moment depends on nothing but that moment, so that a resumed training need not know its past.
    """

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor | None) -> Tensor:
        """The loss at the end."""

    def at(self, epoch: int, share: float) -> Loss:
        """The loss in an epoch (from 1), when `share` of all steps are done."""


def loss_at(loss: Loss, epoch: int, share: float) -> Loss:
    """What a loss is in an epoch (from 1), when `share` of all steps are done."""
    return loss.at(epoch, share) if isinstance(loss, ChangingLoss) else loss


class Learner:
    """A model with its optimiser and, for float16, its gradient scaler."""

    def __init__(self, model: nn.Module, training: Training, device: torch.device) -> None:
        self.model = model.to(device)
        self.device = device
        self.gradient_clip = training.gradient_clip
        self.optimizer = optimizer_of(model, training.optimizer)
        self.precision: Precision = resolve_precision(training.precision, device)
        self.scaler = gradient_scaler(self.precision, device)

    def learn(
        self,
        x: Tensor,  # (B, …)
        labels: Tensor | None,  # (B,)
        taught: Tensor | None,  # (B, K), the teacher's logits
        loss: Loss,
        learning_rate: float,
    ) -> tuple[Tensor, Tensor]:
        """Take one step; return the loss before it, a scalar, and the logits (B, K), both without gradients.

        Raises Invalid for a single example where the model needs more.
        """
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.zero_grad(set_to_none=True)
        logits = self._forward(x)
        value = loss(logits, taught, labels)
        self.scaler.scale(value).backward()  # type: ignore[no-untyped-call]  # torch's own
        if self.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return value.detach(), logits.detach()

    def _forward(self, x: Tensor) -> Tensor:
        try:
            with autocast(self.precision, self.device):
                logits: Tensor = self.model(x)
        except ValueError as error:
            if len(x) > 1:
                raise
            text = f"the model cannot be trained on a batch of one example ({error}); use a batch_size of 2 or more"
            wrong = FieldError(pointer="/config/training/batch_size", detail=text)
            raise Invalid(text, errors=(wrong,)) from error
        return logits.float()

    def is_finite(self) -> bool:
        """Whether every weight is a number."""
        return all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())

    def state(self) -> dict[str, Any]:
        """Weights, the optimiser's moments, the scale of gradients, and the precision that was chosen."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "precision": self.precision,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, in its precision, whatever this device would choose."""
        self.precision = state["precision"]
        self.scaler = gradient_scaler(self.precision, self.device)
        self.scaler.load_state_dict(state["scaler"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
