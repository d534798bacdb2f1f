"""A one-pass histogram of activations, from which bins are cut afterwards.

Bins need the range or the quantiles of all the data, which a stream tells only at its end. So this keeps
counts on a grid that needs no range: a float32 cut to its sign, its exponent and the first few bits of its
mantissa, an integer that sorts as the value does. With the default 9 bits a value is known to 0.2% of
itself. Only occupied grid points are stored, sorted, so memory is bounded by the grid, not by the data,
and the state is the same whatever the batch size or the order of the batches; merging two adds their
counts. With 23 bits it is exact.

Bins cut from it are those that `binning` would cut from all the values at once, each rounded down to the
grid. Where a unit's mean is far larger than its spread (over 2⁹ times), ask for more bits.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.information.binning import (
    bin_codes,
    checked_labels,
    checked_values,
    equal_mass_ranks,
    equal_width_edges,
)

MAGNITUDE = 2**31 - 1  # all bits of a float32 but its sign
FULL_MANTISSA = 23


def grid_key(values: Tensor, mantissa_bits: int) -> Tensor:
    """Order-preserving integer of each value, rounded down to the grid: any shape -> int64 ≥ 0."""
    # Adding 0 turns −0 into 0, which sorts with it.
    bits = (values.float() + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ MAGNITUDE, bits).long() + 2**31
    return ordered >> (FULL_MANTISSA - mantissa_bits)


def grid_value(keys: Tensor, mantissa_bits: int) -> Tensor:
    """Smallest float32 with that key: int64 -> float32."""
    ordered = ((keys << (FULL_MANTISSA - mantissa_bits)) - 2**31).int()
    return torch.where(ordered < 0, ordered ^ MAGNITUDE, ordered).view(torch.float32)


@dataclass
class ActivationHistogram:
    """Counts of U units' values on the float grid, by class of L if labels are given. State on the CPU."""

    num_units: int
    num_labels: int = 1
    mantissa_bits: int = 9
    num_rows: int = 0
    cells: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # sorted, distinct
    counts: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        if not 0 <= self.mantissa_bits <= FULL_MANTISSA:
            raise ValueError(f"mantissa_bits is {self.mantissa_bits}; expected 0..{FULL_MANTISSA}.")
        if self.num_units * self.num_labels >= 2**31:
            raise ValueError("Units times labels reach 2³¹; measure the units in several histograms.")

    def update(self, values: Tensor, labels: Tensor | None = None) -> None:
        """Count a batch: values (n, U), and labels (n,) if the histogram has more than one label."""
        values = checked_values(values)
        if values.shape[1] != self.num_units:
            raise ValueError(f"The batch has {values.shape[1]} units; expected {self.num_units}.")
        if labels is None and self.num_labels > 1:
            raise ValueError(f"The batch has no labels; this histogram counts by {self.num_labels} classes.")
        units = torch.arange(self.num_units, device=values.device)
        cells = (units * self._keys_per_unit + grid_key(values, self.mantissa_bits)) * self.num_labels
        if labels is not None:
            cells = cells + checked_labels(labels, len(values), self.num_labels).to(cells.device)[:, None]
        distinct, counts = torch.unique(cells, return_counts=True)
        self._add(distinct.cpu(), counts.cpu())
        self.num_rows += len(values)

    def merge(self, other: "ActivationHistogram") -> None:
        """Add what another histogram of the same units, labels and grid has counted."""
        mine = (self.num_units, self.num_labels, self.mantissa_bits)
        theirs = (other.num_units, other.num_labels, other.mantissa_bits)
        if mine != theirs:
            raise ValueError(f"Histograms differ in (units, labels, mantissa bits): {mine} and {theirs}.")
        self._add(other.cells, other.counts)
        self.num_rows += other.num_rows

    def unit(self, unit: int) -> tuple[Tensor, Tensor]:
        """One unit's grid values (k,), ascending float32, and their counts by label (k, L), int64."""
        span = self._keys_per_unit * self.num_labels
        bounds = torch.tensor([unit * span, (unit + 1) * span])
        start, stop = torch.searchsorted(self.cells, bounds).tolist()
        keys = self.cells[start:stop] - unit * span
        distinct, position = torch.unique(keys // self.num_labels, return_inverse=True)
        table = torch.zeros(len(distinct), self.num_labels, dtype=torch.int64)
        table[position, keys % self.num_labels] = self.counts[start:stop]
        return grid_value(distinct, self.mantissa_bits), table

    def equal_width_counts(self, num_bins: int) -> Tensor:
        """Counts (U, B, L) in B bins of equal width over each unit's range."""
        return torch.stack([self._binned(unit, num_bins, equal_mass=False) for unit in range(self.num_units)])

    def equal_mass_counts(self, num_bins: int) -> Tensor:
        """Counts (U, B, L) in B bins of nearly equal mass per unit, as far as ties allow."""
        return torch.stack([self._binned(unit, num_bins, equal_mass=True) for unit in range(self.num_units)])

    @property
    def _keys_per_unit(self) -> int:
        return 1 << (9 + self.mantissa_bits)  # sign, 8 bits of exponent, mantissa

    def _add(self, cells: Tensor, counts: Tensor) -> None:
        self.cells, position = torch.unique(torch.cat([self.cells, cells]), return_inverse=True)
        total = torch.zeros(len(self.cells), dtype=torch.int64)
        self.counts = total.index_add_(0, position, torch.cat([self.counts, counts]))

    def _binned(self, unit: int, num_bins: int, *, equal_mass: bool) -> Tensor:
        values, table = self.unit(unit)
        if not len(values):
            raise ValueError("The histogram is empty; update it with at least one batch first.")
        edges = equal_width_edges(values[:1], values[-1:], num_bins)
        if equal_mass:
            upto = table.sum(1).cumsum(0)
            ranks = equal_mass_ranks(self.num_rows, num_bins)
            edges = values[torch.searchsorted(upto, ranks, right=True)][None]
        codes = bin_codes(values[:, None], edges)[:, 0]
        return torch.zeros(num_bins, self.num_labels, dtype=torch.int64).index_add_(0, codes, table)
