"""Least squares from moments: what is read, x, and what is to be said of it, z, summed up as they stream by.

Sums of products about the mean, in float64, merged batch by batch (Chan, Golub and LeVeque 1983), so that nothing
cancels and the order and size of batches do not matter. They hold all that a ridge regression needs, and the error
of any weights on the rows that went in. Where there are fewer rows than columns, rows.py takes less.

Legend: R rows, G groups that are solved for by themselves, K columns and N outputs of one group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.pruning.repair.regression import Solution


@dataclass(frozen=True)
class Gram:
    """The moments of rows; float64."""

    count: int
    mean_x: Tensor  # (G, K)
    mean_z: Tensor  # (G, N)
    xx: Tensor  # (G, K, K), sums of products about the means
    xz: Tensor  # (G, K, N)
    zz: Tensor  # (G, N)

    @staticmethod
    def of(x: Tensor, z: Tensor) -> "Gram":
        """Of rows x (R, G, K) and z (R, G, N), of any floating dtype."""
        x_GRK, z_GRN = (rows.double().transpose(0, 1) for rows in (x, z))
        mean_x, mean_z = x_GRK.mean(1), z_GRN.mean(1)
        x_GRK, z_GRN = x_GRK - mean_x[:, None], z_GRN - mean_z[:, None]
        return Gram(len(x), mean_x, mean_z, x_GRK.mT @ x_GRK, x_GRK.mT @ z_GRN, z_GRN.square().sum(1))

    @staticmethod
    def num_bytes(_rows: int, groups: int, columns: int, outputs: int) -> int:
        """What solving takes: the moments of two parts, their sum, and a factor of it."""
        return 4 * 8 * groups * columns * (columns + outputs)

    def __add__(self, other: "Gram") -> "Gram":
        """Of the rows of both."""
        count = self.count + other.count
        share = other.count / count
        step_x, step_z = other.mean_x - self.mean_x, other.mean_z - self.mean_z
        scale = self.count * share
        return Gram(
            count,
            self.mean_x + step_x * share,
            self.mean_z + step_z * share,
            (self.xx + other.xx).baddbmm_(step_x[:, :, None], step_x[:, None], alpha=scale),
            (self.xz + other.xz).baddbmm_(step_x[:, :, None], step_z[:, None], alpha=scale),
            self.zz + other.zz + step_z.square() * scale,
        )

    @property
    def finite(self) -> bool:
        """Whether nothing overflowed."""
        return all(bool(part.isfinite().all()) for part in (self.xx, self.xz, self.zz))

    @property
    def variance(self) -> float:
        """The mean over rows of |z - mean z|²."""
        return float(self.zz.sum() / self.count)

    def solution(self, ridge: float, *, intercept: bool) -> Solution:
        """The ridge regression of z on x; see regression.py."""
        xx, xz = self.xx / self.count, self.xz / self.count
        if not intercept:
            xx = xx + self.mean_x[:, :, None] * self.mean_x[:, None]
            xz = xz + self.mean_x[:, :, None] * self.mean_z[:, None]
        diagonal = xx.diagonal(dim1=1, dim2=2)
        diagonal += ridge * diagonal.mean(1, keepdim=True)
        matrix = shortest(xx, xz)
        mean = self.said(matrix)
        return Solution(matrix, self.mean_z - mean if intercept else torch.zeros_like(mean))

    def squared_error(self, solution: Solution) -> float:
        """The mean over rows of |z - x @ matrix - bias|², from moments alone."""
        matrix = solution.matrix
        spread = self.zz.sum() + (matrix * (self.xx @ matrix - 2 * self.xz)).sum()
        offset = self.mean_z - self.said(matrix) - solution.bias
        return float((spread / self.count).clamp_min(0) + offset.square().sum())

    def statistics(self, solution: Solution) -> tuple[Tensor, Tensor]:
        """Mean and variance of x @ matrix over the rows: (G, N) each."""
        variance = ((self.xx / self.count) @ solution.matrix * solution.matrix).sum(1)
        return self.said(solution.matrix), variance.clamp_min(0)

    def said(self, matrix: Tensor) -> Tensor:
        """The mean of x @ matrix: (G, N)."""
        return (self.mean_x[:, None] @ matrix)[:, 0]


def shortest(left: Tensor, right: Tensor) -> Tensor:
    """The solution of left @ y = right for symmetric matrices (G, K, K) without negative eigenvalues; the shortest."""
    factor, info = torch.linalg.cholesky_ex(left)
    return torch.linalg.pinv(left, hermitian=True) @ right if info.any() else torch.cholesky_solve(right, factor)
