"""Datasets as the training loop sees them: arrays that may be larger than memory, read by rows.

Arrays are memory-mapped; a split is a view of them by row numbers. Integer images are scaled by
1/255 and every input normalised only when its batch is made, so that the bytes lie on disk once,
in the type in which they came. Token ids are neither scaled nor normalised.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Scaling:
    """x -> (x * factor - mean) / std, per channel (the first axis of an example)."""

    factor: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __call__(self, x: Tensor) -> Tensor:
        """Return float32 inputs, shape (batch, channels, …)."""
        shape = (1, -1) + (1,) * (x.dim() - 2)
        mean = torch.tensor(self.mean, device=x.device).view(shape)
        std = torch.tensor(self.std, device=x.device).view(shape)
        return (x.float() * self.factor - mean) / std


@dataclass(frozen=True)
class Split:
    """Rows of a dataset."""

    x: npt.NDArray[np.generic]  # (N, …) memory-mapped
    y: npt.NDArray[np.generic] | None  # (N,) int64 classes, or None
    rows: npt.NDArray[np.int64]  # (n,) row numbers into x and y
    scaling: Scaling | None  # None: token ids

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, positions: npt.NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return inputs (float32, scaled; or int64 token ids) and labels of the given positions within this split."""
        rows = self.rows[positions]
        values = np.ascontiguousarray(self.x[rows])
        # On the CPU, since accelerators know few integers.
        x = torch.from_numpy(values.astype(np.int64) if self.scaling is None else values).to(device)
        y = None if self.y is None else torch.from_numpy(np.ascontiguousarray(self.y[rows])).to(device)
        return x if self.scaling is None else self.scaling(x), y


@dataclass(frozen=True)
class Dataset:
    """Splits that share arrays and scaling; an absent or empty split is None."""

    train: Split | None
    validation: Split | None
    test: Split | None
    num_classes: int | None
    input_shape: tuple[int, ...]
