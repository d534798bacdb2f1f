"""Nats and bits: the base of the logarithm, in one place.

Every formula in this package is evaluated with natural logarithms. A public function takes `base`:
`None` (the default) leaves the result in nats, 2 gives bits, 10 gives hartleys, K gives the share of
log K. Changing the base divides by log(base) and does nothing else, so it is the last step everywhere.
"""

import math

from torch import Tensor


def nats_per_unit(base: float | None) -> float:
    """How many nats one unit of `base` holds; raises ValueError unless the base is finite and above 1."""
    if base is None:
        return 1.0
    if not (math.isfinite(base) and base > 1):
        raise ValueError(
            f"The base of the logarithm is {base}; expected a finite number above 1 (2 for bits), or None for nats."
        )
    return math.log(base)


def in_base(nats: Tensor, base: float | None) -> Tensor:
    """Convert a quantity in nats, of any shape, to units of `base`."""
    unit = nats_per_unit(base)
    return nats if unit == 1.0 else nats / unit
