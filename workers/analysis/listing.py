"""Quantities of units as a report lists them: quantiles and extremes always, every value while there is room."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from service.contract.analysis import UnitValue, UnitValues

SHARES = (0, 5, 25, 50, 75, 95, 100)  # percent
EXTREMES = 10
MOST_NUMBERS = 200_000  # that a report lists: some 2 MB of JSON
DIGITS = 6


@dataclass
class Room:
    """How many numbers a report may still list; groups come in the order of the report, each whole or not at all."""

    left: int = MOST_NUMBERS

    def takes(self, *quantities: Tensor | None) -> bool:
        """Whether all these are listed; if so, their place is taken."""
        wanted = sum(len(values) for values in quantities if values is not None)
        if wanted > self.left:
            return False
        self.left -= wanted
        return True


def unit_values(values: Tensor | None, *, listed: bool) -> UnitValues | None:
    """A quantity of the units of a group, (units,); NaN is what was not measured. None where nothing was."""
    if values is None or not bool(values.isfinite().any()):
        return None
    units = values.isfinite().nonzero().flatten()
    known = values[units].double()
    order = known.sort(stable=True).indices
    quantiles = torch.quantile(known, torch.tensor(SHARES, dtype=torch.float64) / 100)
    return UnitValues(
        mean=rounded(float(known.mean())),
        quantiles={str(share): rounded(value) for share, value in zip(SHARES, quantiles.tolist(), strict=True)},
        lowest=tuple(extremes(units, known, order[:EXTREMES])),
        highest=tuple(extremes(units, known, order.flip(0)[:EXTREMES])),
        values=numbers(values) if listed else None,
    )


def extremes(units: Tensor, known: Tensor, places: Tensor) -> Iterable[UnitValue]:
    """The units at some places, with their values."""
    for unit, value in zip(units[places].tolist(), known[places].tolist(), strict=True):
        yield UnitValue(unit=unit, value=rounded(value))


def numbers(values: Tensor) -> tuple[float | None, ...]:
    """Every value, None where it is not finite."""
    finite = values.isfinite().tolist()
    return tuple(
        rounded(value) if known else None for value, known in zip(values.double().tolist(), finite, strict=True)
    )


def rounded(value: float) -> float:
    """To as many digits as a report gives."""
    return float(f"{value:.{DIGITS}g}")
