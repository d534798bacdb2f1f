"""Dividing examples into training, validation and test splits: by seed, and class by class.

Every row gets a random 64-bit key from PCG64, whose raw stream NumPy guarantees for ever, and each
class's rows are ordered by their keys. Class by class, the first rows go to training, the next to
validation, the last to test, in numbers by largest remainder: each split first gets the whole part
of its share, and the rows that remain go one each to the largest fractional parts (ties in the
order train, validation, test). A class with at least as many rows as there are splits has at least
one row in each: a split left without takes one from the split that has most.

Without stratification all rows count as one class. Row numbers come out in ascending order, so that
a pass over a split reads its file forwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fractions:
    """The share of each split; training gets what the others leave."""

    validation: float
    test: float

    @property
    def shares(self) -> Mapping[str, float]:
        """All shares that are not zero, by split."""
        every = {"train": 1 - self.validation - self.test, "validation": self.validation, "test": self.test}
        return {name: share for name, share in every.items() if share > 0}


def divide(num_rows: int, labels: npt.NDArray[np.int64] | None, fractions: Fractions, seed: int) -> dict[str, Rows]:
    """Return row numbers by split, ascending; together they are 0 .. num_rows - 1, each once.

    Parameters
    ----------
    num_rows
        How many examples there are.
    labels
        (num_rows,) classes to keep the shares of, or None.
    fractions
        Shares of validation and test; a share of 0 makes no split.
    seed
        The same seed and labels give the same splits, on every machine.

    """
    keys = np.random.PCG64(seed).random_raw(num_rows)
    groups = np.zeros(num_rows, np.int64) if labels is None else labels
    order = np.lexsort((keys, groups))  # by class, and within a class by key
    bounds = np.flatnonzero(np.diff(groups[order], prepend=-1, append=-1)) if num_rows else np.zeros(1, np.int64)
    shares = fractions.shares
    parts: dict[str, list[Rows]] = {name: [] for name in shares}
    for start, end in pairwise(bounds):
        position = start
        for name, count in zip(shares, allocate(int(end - start), list(shares.values())), strict=True):
            parts[name].append(order[position : position + count])
            position += count
    return {name: np.sort(np.concatenate([*rows, np.empty(0, np.int64)])) for name, rows in parts.items()}


def allocate(num_rows: int, shares: Sequence[float]) -> list[int]:
    """How many of a class's rows each split gets: largest remainder, and none empty where rows suffice."""
    quotas = [share * num_rows for share in shares]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - quotas[i], i))
    for i in by_remainder[: num_rows - sum(counts)]:
        counts[i] += 1
    if num_rows >= len(shares):
        while 0 in counts:
            counts[counts.index(max(counts))] -= 1
            counts[counts.index(0)] += 1
    return counts
