"""What a training leaves behind."""

from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import Tensor, nn

State = dict[str, Tensor]


@dataclass(frozen=True)
class TrainingOutcome:
    """Both candidates for the artifact, and the way to them. Epochs count from 1; states are on the CPU."""

    last_state: State
    best_state: State  # of the epoch that did best on the validation split; without one, the last
    last_epoch: int
    best_epoch: int
    num_steps: int  # that were taken
    stopped_early: bool
    precision: str  # that the model was trained in
    history: tuple[dict[str, float], ...]  # one a epoch: "epoch" and the epoch's metrics

    def state(self, which: Literal["best", "last"]) -> State:
        """The weights of the best epoch or of the last."""
        return self.best_state if which == "best" else self.last_state

    def epoch(self, which: Literal["best", "last"]) -> int:
        """The number of the best epoch or of the last."""
        return self.best_epoch if which == "best" else self.last_epoch

    def plain(self) -> dict[str, Any]:
        """What a checkpoint holds of this outcome."""
        return {**vars(self), "history": list(self.history)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Self:
        """The outcome that a checkpoint holds."""
        return cls(**{**plain, "history": tuple(plain["history"])})


def copied_state(model: nn.Module) -> State:
    """A copy of a model's state on the CPU, which further training does not change."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
