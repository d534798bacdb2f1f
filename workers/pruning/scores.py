"""What a criterion says of every unit. High means keep."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Scores of the units of every group, with what is known of their chance error.

    `values[group]` has shape (units,), float64. `errors[group]`, of the same shape, is the standard error of the
    score over the calibration inputs, where the criterion is a mean over them.
    """

    values: Mapping[str, Tensor]
    errors: Mapping[str, Tensor] = field(default_factory=dict)
    examples: int = 0  # calibration inputs that were looked at
    comparable: bool = True  # across groups; else within a group only
    notes: tuple[str, ...] = ()  # what a user must know of these scores, in words
