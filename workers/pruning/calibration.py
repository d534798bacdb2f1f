"""The inputs on which units are judged and layers refitted: rows of the training split, drawn by seed.

They carry labels where the dataset has them, and nothing here needs them. Batches are cut in one fixed order, so
that a score does not depend on who asks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.training.data import Split


@dataclass(frozen=True)
class Batch:
    """Some examples; `start` is the place of the first among all."""

    start: int
    x: Tensor  # (B, …), as the network takes it
    labels: Tensor | None  # (B,) int64

    def __len__(self) -> int:
        return len(self.x)

    @property
    def rows(self) -> slice:
        """Where the examples stand among all."""
        return slice(self.start, self.start + len(self.x))


@dataclass(frozen=True)
class Calibration:
    """A sample of a split."""

    split: Split
    positions: NDArray[np.int64]  # within the split
    device: torch.device = field(default=torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.positions)

    def batches(self, size: int) -> Iterator[Batch]:
        """All examples in order, at most `size` at a time."""
        for start in range(0, len(self), size):
            x, labels = self.split.batch(self.positions[start : start + size], self.device)
            yield Batch(start, x, labels)

    @property
    def labelled(self) -> bool:
        """Whether the examples have labels."""
        return self.split.y is not None


def drawn(split: Split, examples: int, seed: int, device: torch.device) -> Calibration:
    """`examples` rows of `split` (all of them where it has fewer), without repetition, in an order by `seed`."""
    order = np.random.default_rng([seed, 0xCA11B]).permutation(len(split))
    return Calibration(split, order[:examples].astype(np.int64), device)
