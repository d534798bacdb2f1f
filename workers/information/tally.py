"""Tallies: measures of a stream, exact whatever its batches.

A tally takes batches in any order and size, merges with another, and its result depends on neither, to the
last bit: it adds integers, whose sum has no order. Counts are integers already; probabilities and
entropies are computed in float64 and rounded to multiples of 2⁻³⁶ (1.5·10⁻¹¹) before they are added.
Memory is bounded by the number of classes, not of rows.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.information.binning import checked_labels
from workers.information.bootstrap import Resampling
from workers.information.entropy import entropy
from workers.information.estimators import (
    Estimate,
    EstimatorName,
    estimate_mutual_information,
)
from workers.information.probability import log_softmax, weighted
from workers.information.units import nats_per_unit

QUANTUM = 2.0**-36
MAX_ROWS = 2**26  # so that the integer sum of a class that is always certain stays below 2⁶³


@dataclass
class JointTally:
    """Joint counts of two discrete variables, such as labels and predictions: a confusion matrix."""

    num_x: int
    num_y: int
    counts: Tensor = field(init=False)  # (|X|, |Y|) int64

    def __post_init__(self) -> None:
        self.counts = torch.zeros(self.num_x, self.num_y, dtype=torch.int64)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Count a batch of pairs: integer x (n,) in 0..|X|−1 and y (n,) in 0..|Y|−1."""
        x, y = checked_labels(x, len(x), self.num_x), checked_labels(y, len(x), self.num_y)
        cells = torch.bincount(x * self.num_y + y, minlength=self.num_x * self.num_y)
        self.counts += cells.view(self.num_x, self.num_y).cpu()

    def merge(self, other: "JointTally") -> None:
        """Add what another tally of the same variables has counted."""
        if self.counts.shape != other.counts.shape:
            raise ValueError(f"Tables differ: {tuple(self.counts.shape)} and {tuple(other.counts.shape)}.")
        self.counts += other.counts

    def mutual_information(
        self, *, estimator: EstimatorName = "miller_madow", resampling: Resampling | None = None
    ) -> Estimate:
        """I(X;Y) of what was counted, nats; with `resampling`, with its bootstrap interval."""
        return estimate_mutual_information(self.counts, estimator=estimator, resampling=resampling)


@dataclass
class PredictionTally:
    """Mean prediction and mean entropy of a classifier over a stream of logits."""

    num_classes: int
    num_rows: int = 0
    entropy_quanta: int = 0  # sum of H(p), nats / QUANTUM
    probability_quanta: Tensor = field(init=False)  # (K,) int64, sum of p / QUANTUM

    def __post_init__(self) -> None:
        self.probability_quanta = torch.zeros(self.num_classes, dtype=torch.int64)

    def update(self, logits: Tensor) -> None:
        """Count a batch of logits (n, K)."""
        if logits.dim() != 2 or logits.shape[1] != self.num_classes:
            raise ValueError(f"Logits have shape {tuple(logits.shape)}; expected (n, {self.num_classes}).")
        log_p = log_softmax(logits.detach().double(), -1)
        p = log_p.exp()
        if bool(p.isnan().any()):
            raise ValueError("A prediction is NaN: a row of logits holds NaN, +∞, or −∞ alone.")
        self._add(len(logits), _quanta(weighted(p, -log_p).sum(-1)), _quanta(p))

    def merge(self, other: "PredictionTally") -> None:
        """Add what another tally over the same classes has counted."""
        if self.num_classes != other.num_classes:
            raise ValueError(f"Tallies have {self.num_classes} and {other.num_classes} classes.")
        self._reserve(other.num_rows)
        self.entropy_quanta += other.entropy_quanta
        self.probability_quanta += other.probability_quanta

    def mean_prediction(self) -> Tensor:
        """p̄, the mean of softmax(z) over all rows: (K,) float64."""
        self._check_rows()
        return self.probability_quanta.double() / float(self.probability_quanta.sum())

    def predictive_entropy(self, *, base: float | None = None) -> float:
        """E H(p), in nats or units of `base`."""
        self._check_rows()
        return self.entropy_quanta * QUANTUM / self.num_rows / nats_per_unit(base)

    def entropy_of_mean_prediction(self, *, base: float | None = None) -> float:
        """H(p̄), in nats or units of `base`."""
        return float(entropy(self.mean_prediction(), base=base))

    def predictive_information(self, *, base: float | None = None) -> float:
        """I(X;Ŷ) = H(p̄) − E H(p), in nats or units of `base`; what rounding took below zero is zero."""
        return max(0.0, self.entropy_of_mean_prediction(base=base) - self.predictive_entropy(base=base))

    def _add(self, num_rows: int, entropies: Tensor, probabilities: Tensor) -> None:
        self._reserve(num_rows)
        self.entropy_quanta += int(entropies.sum())
        self.probability_quanta += probabilities.sum(0).cpu()

    def _reserve(self, num_rows: int) -> None:
        if self.num_rows + num_rows > MAX_ROWS:
            raise OverflowError(f"A tally holds at most {MAX_ROWS} rows; start another one.")
        self.num_rows += num_rows

    def _check_rows(self) -> None:
        if not self.num_rows:
            raise ValueError("The tally is empty; update it with at least one batch first.")


def _quanta(x: Tensor) -> Tensor:
    return (x / QUANTUM).round().long()
