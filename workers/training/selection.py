"""Which epoch is the best, and when there is no more use in waiting for a better one.

Both are judged on the validation split alone. Scores are put so that lower is better. The best epoch is the
first with the lowest score; patience counts the epochs since the score last fell by more than `min_delta`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from service.contract.errors import Invalid
from service.contract.specs import EarlyStopping, Training
from workers.training.data import Split

Monitor = Literal["loss", "accuracy"]


@dataclass(frozen=True)
class Watch:
    """What has been seen of the validation split so far."""

    best_epoch: int = 0  # from 1; 0 before the first
    best_score: float = math.inf
    reference: float = math.inf  # the score that an improvement is measured from
    epochs_waited: int = 0


def score(metrics: Mapping[str, float], monitor: Monitor) -> float:
    """The monitored validation quantity, lower being better."""
    return metrics["validation/loss"] if monitor == "loss" else -metrics["validation/accuracy"]


def observe(watch: Watch, epoch: int, value: float, min_delta: float) -> Watch:
    """What is known after an epoch (from 1) with this score."""
    if value < watch.best_score:
        watch = replace(watch, best_epoch=epoch, best_score=value)
    if value < watch.reference - min_delta:
        return replace(watch, reference=value, epochs_waited=0)
    return replace(watch, epochs_waited=watch.epochs_waited + 1)


def is_over(watch: Watch, early_stopping: EarlyStopping | None) -> bool:
    """Whether patience has run out."""
    return early_stopping is not None and watch.epochs_waited >= early_stopping.patience


def doubt_about_selection(training: Training, validation: Split | None) -> str | None:
    """What a user should know about selection on this data. Raises Invalid where it cannot be done at all."""
    stopping = training.early_stopping
    if validation is None and (stopping is not None or training.select == "best"):
        return "there is no validation split: training runs to its last epoch, which is taken as the best"
    if validation is not None and validation.y is None and stopping is not None and stopping.monitor == "accuracy":
        raise Invalid('early stopping watches the accuracy, and the data have no labels; use "monitor": "loss"')
    return None
