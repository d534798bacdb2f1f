"""Weights and temperatures that change over a training: pure functions of its share that is done.

    linear   from + (to − from) · s
    cosine   to + (from − to) · ½ (1 + cos π s)

s is the step by the number of all steps: 0 at the first one, near 1 at the last.
"""

import math
from collections.abc import Callable

from service.contract.ramps import Ramp

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda share: 1 - share,
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
}


def value_at(value: float | Ramp, share: float) -> float:
    """What a number of a spec is when `share` (0 to 1) of the training is done."""
    if not isinstance(value, Ramp):
        return value
    left = SHAPES[value.shape](share)
    return left * value.start + (1 - left) * value.stop
