"""Screened scores: a cheap score for all units, the exact one for those that it cannot tell from the cut.

Of each pool of units (a group, or all together) `cut` are to go. Some units, drawn at random from all, are scored both
ways, which tells how the cheap score errs: by a factor exp(b + σ·ε) where both scores are positive, else by a
difference b + σ·ε. On that scale, with the bias b taken out, a unit at distance d from the cut is on the wrong side
with probability P: the larger of the normal tail beyond d/σ and half the share of drawn units that err as far.

The band is the smallest multiple of σ outside which the expected number of units on the wrong side, Σ P over the
unchecked, is at most `error_rate` times the number to go. Units inside are scored exactly; the cut then moves, so
the band is looked at again until nothing in it is left unchecked. Units drawn are checked anyway. The rate that is
left is stated, of membership in the removed part: it says nothing of ranks elsewhere.

The standard errors of the scores do not widen the band: both scores look at the same inputs, whose choice moves them
together. Whether a unit is told from the cut *beyond* these inputs is for whoever reads the errors.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.graph.labels import LabelArray
from workers.pruning.scores import Scores

SAMPLE_SHARE = 0.05  # of the units, to be scored both ways
SMALLEST_SAMPLE = 24
ROUNDS = 10
BANDS = np.arange(0.0, 6.01, 0.25)  # multiples of τ

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

# Group -> units -> their exact scores (and errors); units that were not asked for may hold anything.
Exact = Callable[[Mapping[str, LabelArray]], Scores]


@dataclass(frozen=True)
class Screened:
    """Scores with what is known of their mistakes."""

    scores: Scores  # exact where checked, else the cheap score without its bias
    checked: Mapping[str, Tensor]  # (units,) bool
    band: float  # multiple of a unit's error within which units were checked
    error: float  # σ, of the cheap score: a standard deviation of its logarithm, or of itself
    logarithmic: bool
    error_rate: float  # expected share of the units to go that should stay


@dataclass
class Ledger:
    """All units of all groups in one row."""

    names: list[str]
    sizes: list[int]
    cheap: Floats
    values: Floats  # exact where checked
    checked: Booleans
    pools: list[tuple[LabelArray, int]]  # places, and how many of them go
    logarithmic: bool = field(default=True)

    def selection(self, places: LabelArray) -> dict[str, LabelArray]:
        """Group -> units of some places."""
        starts = np.cumsum([0, *self.sizes])
        found = {
            name: places[(places >= start) & (places < start + size)] - start
            for name, start, size in zip(self.names, starts, self.sizes, strict=False)
        }
        return {name: units for name, units in found.items() if len(units)}

    def scale(self, values: Floats) -> Floats:
        """Scores as their errors are measured: logarithms, or themselves."""
        return np.log(values) if self.logarithmic else values

    def by_group(self, values: NDArray[np.generic]) -> dict[str, Tensor]:
        """One row as a tensor for each group."""
        parts = np.split(values, np.cumsum(self.sizes)[:-1])
        return {name: torch.from_numpy(part.copy()) for name, part in zip(self.names, parts, strict=True)}


def screened(
    cheap: Scores,
    exact: Exact,
    cuts: Mapping[str, int] | int,
    *,
    error_rate: float = 0.01,
    sample: int | None = None,
    seed: int = 0,
) -> Screened:
    """Scores that are exact wherever they may decide who goes.

    `cuts`: how many units go of each group, or of all groups ranked together. `error_rate`: the largest expected share
    of wrong members among those that go. `sample`: how many units are scored both ways; None: a twentieth, at least 24.
    """
    ledger = open_ledger(cheap, cuts)
    total = len(ledger.cheap)
    wanted = max(SMALLEST_SAMPLE, math.ceil(SAMPLE_SHARE * total)) if sample is None else sample
    drawn = np.sort(np.random.default_rng([seed, 0x5C4EE]).permutation(total)[:wanted])
    check(ledger, drawn, exact)
    ledger.logarithmic = bool((ledger.cheap > 0).all() and (ledger.values[ledger.checked] > 0).all())
    misses = ledger.scale(ledger.values[drawn]) - ledger.scale(ledger.cheap[drawn])
    bias, spread = float(np.median(misses)), float(misses.std(ddof=1)) if len(misses) > 1 else 0.0
    tails = np.sort(np.abs(misses - bias) / max(spread, 1e-300))
    band = rate = 0.0
    for _ in range(ROUNDS):
        distances = distances_from_cut(ledger, bias, spread)
        band, rate = smallest_band(ledger, distances, tails, error_rate)
        inside = np.flatnonzero((distances <= band) & ~ledger.checked)
        if not len(inside):
            break
        check(ledger, inside, exact)
    corrected = ledger.cheap * math.exp(bias) if ledger.logarithmic else ledger.cheap + bias
    values = np.where(ledger.checked, ledger.values, corrected)
    note = (
        f"{int(ledger.checked.sum())} of {total} units were scored exactly: those within {band:g} errors of the cut, "
        f"and {len(drawn)} drawn at random; at most {rate:.1%} of the units below the cut are expected to be wrong."
    )
    scores = Scores(ledger.by_group(values), cheap.errors, cheap.examples, notes=(*cheap.notes, note))
    return Screened(scores, ledger.by_group(ledger.checked), band, spread, ledger.logarithmic, rate)


def open_ledger(cheap: Scores, cuts: Mapping[str, int] | int) -> Ledger:
    """Nothing checked yet."""
    names = list(cheap.values)
    sizes = [len(cheap.values[name]) for name in names]
    values = np.concatenate([cheap.values[name].numpy() for name in names])
    starts = np.cumsum([0, *sizes])
    if isinstance(cuts, int):
        pools = [(np.arange(len(values)), cuts)]
    else:
        pools = [
            (np.arange(start, start + size), cuts.get(name, 0))
            for name, start, size in zip(names, starts, sizes, strict=False)
        ]
    open_pools = [(places, cut) for places, cut in pools if 0 < cut < len(places)]
    blank = np.full(len(values), np.nan)
    return Ledger(names, sizes, values, blank, np.zeros(len(values), dtype=bool), open_pools)


def check(ledger: Ledger, places: LabelArray, exact: Exact) -> None:
    """Score some places exactly."""
    scores = exact(ledger.selection(places))
    row = np.concatenate([
        scores.values[name].numpy() if name in scores.values else np.full(size, np.nan)
        for name, size in zip(ledger.names, ledger.sizes, strict=True)
    ])  # fmt: skip
    ledger.values[places] = row[places]
    ledger.checked[places] = True


def distances_from_cut(ledger: Ledger, bias: float, spread: float) -> Floats:
    """How many of its errors each unit is away from its pool's cut: (all units,); ∞ where there is no cut."""
    best = np.where(ledger.checked, ledger.values, ledger.cheap)
    scaled = ledger.scale(np.maximum(best, 1e-300) if ledger.logarithmic else best)
    scaled = np.where(ledger.checked, scaled, scaled + bias)
    distances = np.full(len(best), np.inf)
    for places, cut in ledger.pools:
        ordered = np.sort(scaled[places])
        middle = (ordered[cut - 1] + ordered[cut]) / 2
        distances[places] = np.abs(scaled[places] - middle) / max(spread, 1e-300)
    return distances


def smallest_band(ledger: Ledger, distances: Floats, tails: Floats, error_rate: float) -> tuple[float, float]:
    """The smallest multiple that keeps the expected share of wrong members low, and that share."""
    going = max(sum(cut for _, cut in ledger.pools), 1)
    normal = np.array([0.5 * math.erfc(distance / math.sqrt(2)) if distance < 40 else 0.0 for distance in distances])
    beyond = (len(tails) - np.searchsorted(tails, distances)) / (2 * max(len(tails), 1))
    wrong = np.where(ledger.checked, 0.0, np.maximum(normal, beyond))
    for band in BANDS:
        rate = float(wrong[distances > band].sum()) / going
        if rate <= error_rate:
            return float(band), rate
    return float(BANDS[-1]), rate
