"""Least squares from the rows themselves, where a layer has fewer of them than columns.

A layer that reads a wide flattened map has thousands of columns and as few rows as there are examples. Its solution
lies among the combinations of its rows, so that a system of the size of the rows is solved (ridge regression in dual
variables, Saunders, Gammerman and Vovk 1998): Xᵀ (X Xᵀ + R λ m I)⁻¹ Z for centred X and Z, with m = mean(diag cov X).

Legend: R rows, G groups that are solved for by themselves, K columns and N outputs of one group.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from workers.pruning.repair.gram import shortest
from workers.pruning.repair.regression import Solution


@dataclass(frozen=True)
class Rows:
    """Rows as they came."""

    parts: tuple[tuple[Tensor, Tensor], ...]  # x (R, G, K) and z (R, G, N), of any floating dtype

    @staticmethod
    def of(x: Tensor, z: Tensor) -> "Rows":
        """Of rows x (R, G, K) and z (R, G, N)."""
        return Rows(((x, z),))

    @staticmethod
    def num_bytes(rows: int, groups: int, columns: int, outputs: int) -> int:
        """What solving takes: the rows as they came and of two parts and both in float64, and their products."""
        return 4 * 8 * groups * rows * (columns + outputs + rows)

    def __add__(self, other: "Rows") -> "Rows":
        """The rows of both."""
        return Rows(self.parts + other.parts)

    @cached_property
    def count(self) -> int:
        """R."""
        return sum(len(x) for x, _ in self.parts)

    @cached_property
    def x(self) -> Tensor:
        """(G, R, K) float64."""
        return torch.cat([x for x, _ in self.parts]).double().transpose(0, 1)

    @cached_property
    def z(self) -> Tensor:
        """(G, R, N) float64."""
        return torch.cat([z for _, z in self.parts]).double().transpose(0, 1)

    @property
    def finite(self) -> bool:
        """Whether nothing overflowed."""
        return all(bool(part.isfinite().all()) for pair in self.parts for part in pair)

    @property
    def variance(self) -> float:
        """The mean over rows of |z - mean z|²."""
        return float(self.z.var(1, correction=0).sum())

    def solution(self, ridge: float, *, intercept: bool) -> Solution:
        """The ridge regression of z on x; see regression.py."""
        mean_x, mean_z = self.x.mean(1, keepdim=True), self.z.mean(1, keepdim=True)
        x, z = (self.x - mean_x, self.z - mean_z) if intercept else (self.x, self.z)
        products = x @ x.mT
        diagonal = products.diagonal(dim1=1, dim2=2)
        diagonal += ridge * diagonal.sum(1, keepdim=True) / x.shape[2]
        matrix = x.mT @ shortest(products, z)
        bias = (mean_z - mean_x @ matrix)[:, 0]
        return Solution(matrix, bias if intercept else torch.zeros_like(bias))

    def squared_error(self, solution: Solution) -> float:
        """The mean over rows of |z - x @ matrix - bias|²."""
        off = self.z - self.x @ solution.matrix - solution.bias[:, None]
        return float(off.square().sum() / self.count)

    def statistics(self, solution: Solution) -> tuple[Tensor, Tensor]:
        """Mean and variance of x @ matrix over the rows: (G, N) each."""
        said = self.x @ solution.matrix
        return said.mean(1), said.var(1, correction=0)
