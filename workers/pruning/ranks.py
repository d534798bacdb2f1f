"""Rank correlation of scores."""

import torch
from torch import Tensor


def ranks(values: Tensor) -> Tensor:
    """The rank of every value, ties sharing their mean rank: (n,) -> (n,) float64."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    middle: Tensor = last - (counts.double() - 1) / 2
    return middle[place]


def spearman(left: Tensor, right: Tensor) -> float:
    """Spearman's rank correlation of two rows (n,); NaN where one of them is constant or n < 2."""
    a, b = (ranks(values.flatten()) for values in (left, right))
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / (a.norm() * b.norm()))
