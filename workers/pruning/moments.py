"""Mean and standard error of many values over a stream of examples."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Moments:
    """Sums of the values of U units over examples and of their squares, in float64 on the CPU.

    Units may be counted at different times, so each has its own number of examples.
    """

    num_units: int
    count: Tensor = field(init=False)  # (U,) int64
    total: Tensor = field(init=False)  # (U,)
    squares: Tensor = field(init=False)  # (U,)

    def __post_init__(self) -> None:
        self.count = torch.zeros(self.num_units, dtype=torch.int64)
        self.total = torch.zeros(self.num_units, dtype=torch.float64)
        self.squares = torch.zeros(self.num_units, dtype=torch.float64)

    def update(self, values: Tensor, units: Tensor | slice | None = None) -> None:
        """Count the values (n, u) of n examples, for the given units or all."""
        chosen = slice(None) if units is None else units
        values = values.detach().double()
        self.count[chosen] += len(values)
        self.total[chosen] += values.sum(0).cpu()
        self.squares[chosen] += (values * values).sum(0).cpu()

    def merge(self, other: "Moments") -> None:
        """Add what another stream of the same units has counted."""
        self.count += other.count
        self.total += other.total
        self.squares += other.squares

    def mean(self) -> Tensor:
        """(U,) float64; NaN for units that were never counted."""
        return self.total / self.count

    def error(self) -> Tensor:
        """The standard error of the mean, s/√n: (U,) float64; NaN for fewer than two examples."""
        spread = (self.squares - self.total * self.total / self.count).clamp(min=0)
        return (spread / (self.count - 1) / self.count).sqrt()
