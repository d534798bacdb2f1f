"""What any kind of evidence about a layer must tell, and what follows from it."""

from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor


@dataclass(frozen=True)
class Solution:
    """z is about x @ matrix + bias."""

    matrix: Tensor  # (G, K, N) float64
    bias: Tensor  # (G, N)


class Evidence(Protocol):
    """Rows of what a layer reads, x (R, G, K), and of what it is to say, z (R, G, N), or what is known of them.

    G groups are solved for by themselves, each with K columns and N outputs. Everything is float64.
    """

    @staticmethod
    def of(x: Tensor, z: Tensor) -> "Evidence":
        """Of some rows, of any floating dtype."""

    def __add__(self, other: Self) -> "Evidence":
        """Of the rows of both."""

    @property
    def count(self) -> int:
        """R."""

    @property
    def finite(self) -> bool:
        """Whether nothing overflowed."""

    @property
    def variance(self) -> float:
        """The mean over rows of |z - mean z|²."""

    def solution(self, ridge: float, *, intercept: bool) -> Solution:
        """The ridge regression of z on x, and the bias, which the ridge does not shrink.

        matrix = (cov x + ridge * mean(diag cov x) * I)^-1 cov(x, z) and bias = mean z - mean x @ matrix; without an
        intercept the moments are about zero and the bias is 0. Where the matrix is singular (no ridge, or nothing
        but constant inputs) the solution is the shortest.
        """

    def squared_error(self, solution: Solution) -> float:
        """The mean over rows of |z - x @ matrix - bias|²."""

    def statistics(self, solution: Solution) -> tuple[Tensor, Tensor]:
        """Mean and variance of x @ matrix over the rows: (G, N) each."""


def relative_error(evidence: Evidence, solution: Solution) -> float:
    """The squared error as a share of the variance of z; the squared error itself where z does not vary."""
    return evidence.squared_error(solution) / (evidence.variance or 1.0)
