"""How much of a unit the others of its group say: R² from one covariance.

    R²_u = 1 − 1 / (C_uu · (C⁻¹)_uu)

since 1/(C⁻¹)_uu is the variance that is left of a unit once its best linear prediction from all others is taken away
(the residual variance of the regression; Whittaker 1990, Graphical Models, §5.7). All units cost one inverse. C is
made a correlation first, plus 10⁻⁸ on its diagonal, so that exact copies have R² = 1 within 10⁻⁷ and not a division
by zero.

It is linear: a unit that is a function of the others, but no linear one, has a low R². A sample of n rows always
explains something: of u unrelated units (u − 1)/(n − 1) on average, which stands beside it.

Legend: B examples, u units, w indices of each, p positions; n = p·B. Indices are taken for positions.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

STEADY = 1e-8  # added to the diagonal of a correlation
ROUNDING = 64  # units in the last place within which a value is constant


@dataclass
class Covariance:
    """Sums over the units of one group; products within a batch in the values' own type, less a typical value."""

    shift: Tensor  # (u, w), taken off before anything is summed
    low: Tensor | None = None  # (u, w, p), the smallest value of any example
    high: Tensor | None = None
    count: int = 0  # n, of each index
    total: Tensor = field(init=False)  # (u, w)
    cross: Tensor | None = field(init=False)  # (u, u); None where only the range is wanted
    products: bool = True

    def __post_init__(self) -> None:
        units = len(self.shift)
        self.total = torch.zeros(self.shift.shape, dtype=torch.float64)
        self.cross = torch.zeros(units, units, dtype=torch.float64) if self.products else None

    def update(self, channels: Tensor) -> None:
        """Count the channels of a batch: (u, w, p, B)."""
        low, high = channels.amin(3), channels.amax(3)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        values = channels.flatten(2)
        values = values - self.shift[..., None]
        self.count += values.shape[2]
        self.total += values.sum(2).double().cpu()
        if self.cross is not None:
            rows = values.flatten(1)
            self.cross += (rows @ rows.T).double().cpu()

    @property
    def rows(self) -> int:
        """All places, those of every index."""
        return self.count * self.shift.shape[1]

    @property
    def constant(self) -> Tensor:
        """Units that are the same for every example, wherever they are looked at, but for rounding: (u,) bool."""
        assert self.low is not None  # noqa: S101  asked of what was counted
        assert self.high is not None  # noqa: S101
        size, spread = torch.maximum(self.low.abs(), self.high.abs()), self.high - self.low
        return (spread <= ROUNDING * torch.finfo(spread.dtype).eps * size).flatten(1).all(1).cpu()

    def covariance(self) -> Tensor:
        """C over all rows, about the mean of each index: (u, u) float64."""
        assert self.cross is not None  # noqa: S101  asked of what was summed
        means = self.total / self.count
        return (self.cross / self.count - means @ means.T) / self.shift.shape[1]


def explained(covariance: Tensor) -> Tensor:
    """R² of each unit from all others, of a covariance (u, u) without zeros on its diagonal: (u,) float64 in 0…1."""
    if len(covariance) < 2:
        return torch.zeros(len(covariance), dtype=torch.float64)
    scale = covariance.diagonal().sqrt()
    correlation = covariance / scale[:, None] / scale
    correlation.diagonal().copy_(torch.ones_like(scale) + STEADY)
    factor, failed = torch.linalg.cholesky_ex(correlation)
    # What rounding took below zero is put back; it is some 10⁻⁷ of the whole.
    precision = torch.cholesky_inverse(factor) if not failed else inverse_of_nearest(correlation)
    found: Tensor = (1 - 1 / precision.diagonal()).clamp(0, 1)
    return found


def inverse_of_nearest(matrix: Tensor) -> Tensor:
    """The inverse of a symmetric matrix with its eigenvalues raised to at least `STEADY`."""
    values, vectors = torch.linalg.eigh(matrix)
    inverse: Tensor = (vectors / values.clamp(min=STEADY)) @ vectors.T
    return inverse


def explained_by_chance(units: int, rows: int) -> float:
    """Mean R² of a unit from `units` − 1 unrelated ones, on so many independent rows."""
    return min(1.0, (units - 1) / (rows - 1)) if rows > 1 else 1.0
