"""Learning rates over time: pure functions from a step to a multiplier of the optimiser's `lr`.

A schedule has no state, so that a resumed training has nothing to restore but its step. Epochs are turned into
steps by rounding: a warm-up of 1.5 epochs at 10 steps each ends after step 14, and step 15 has the full rate.

    warm-up    (s + 1) / W                                       for s < W, times what the schedule says there
    cosine     floor + (1 − floor) · ½ (1 + cos π t)             t = (s − W) / (N − W), 1 during the warm-up
    step       gamma ^ (number of milestones at or before s)
    constant   1

s is the step from 0, W the number of warm-up steps, N that of all steps. Cosine: Loshchilov and Hutter 2017,
one cycle; warm-up: Goyal et al. 2017.
"""

import math
from collections.abc import Callable
from typing import Any

from service.contract.specs import Constant, Cosine, Schedule, Step


def cosine(schedule: Cosine, step: int, steps_per_epoch: int, num_steps: int) -> float:
    """Half a cosine from 1 at the end of the warm-up towards `floor` at `num_steps`."""
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return 1.0
    share = (step - warmup) / (num_steps - warmup)
    return schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * share))


def stepwise(schedule: Step, step: int, steps_per_epoch: int, _num_steps: int) -> float:
    """`gamma` for each milestone that has been reached."""
    reached = sum(step >= round(milestone * steps_per_epoch) for milestone in schedule.milestones)
    return float(schedule.gamma**reached)


def constant(_schedule: Constant, _step: int, _steps_per_epoch: int, _num_steps: int) -> float:
    """Always 1."""
    return 1.0


SCHEDULES: dict[str, Callable[[Any, int, int, int], float]] = {
    "cosine": cosine,
    "step": stepwise,
    "constant": constant,
}


def multiplier(schedule: Schedule, step: int, steps_per_epoch: int, num_steps: int) -> float:
    """What `lr` is multiplied by at a step (from 0) of `num_steps`."""
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    warmed = (step + 1) / warmup if step < warmup else 1.0
    return warmed * SCHEDULES[schedule.name](schedule, step, steps_per_epoch, num_steps)
