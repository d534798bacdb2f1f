"""Entropy and mutual information of a sample, with what is known of their error.

From counts, the plug-in estimate takes the observed frequencies for the probabilities. It is biased: on
average the entropy comes out (m − 1)/2N nats too low, over m cells and N samples, and the mutual
information (m_XY − m_X − m_Y + 1)/2N too high, so that independent variables seem to share something. The
Miller–Madow estimate subtracts that first-order bias, counting the non-empty cells for m; what is left is
of order 1/N², and larger where many cells were never seen. Its mutual information may be negative.

Every estimate says its estimator, its sample and its cells, its own estimated bias, the probability that
its cells have missed, and, on request, a bootstrap interval, centred on the bias-corrected value. Where
`unseen_mass` is below half a percent, 95% intervals covered the truth in 93–97% of samples in every trial,
and in more for uniform or independent variables, whose estimates scarcely vary. At 2% it was 86%, at 4%
56%: there the remaining bias is as large as the spread, and no interval from the sample can be trusted.

Sources: Miller 1955; Paninski 2003, Estimation of Entropy and Mutual Information; Roulston 1999; Good 1953
(the unseen mass).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workers.information.bootstrap import Interval, Resampling, normal_interval, resampled_counts
from workers.information.divergence import divergence_terms
from workers.information.probability import log_of_probabilities
from workers.information.units import nats_per_unit

EstimatorName = Literal["plug_in", "miller_madow"]


@dataclass(frozen=True)
class Estimate:
    """A quantity estimated from a sample, in nats."""

    value: float
    estimator: EstimatorName
    num_samples: int
    num_cells: int  # non-empty ones
    bias: float  # estimated mean error of `value`, nats: to first order, 0 for Miller–Madow
    unseen_mass: float  # Good–Turing: the share of samples that are alone in their cell
    interval: Interval | None = None

    def in_base(self, base: float | None) -> float:
        """Return the value in units of `base` (2 for bits)."""
        return self.value / nats_per_unit(base)


def plug_in_entropy(counts: Tensor) -> Tensor:
    """Ĥ = −Σ (n/N) log(n/N) of counts (..., K) -> (...), float64 nats; any number of tables at once."""
    counts = counts.double()
    terms: Tensor = torch.special.entr(counts / counts.sum(-1, keepdim=True))
    return terms.sum(-1)


def plug_in_mutual_information(table: Tensor) -> Tensor:
    """Î of joint counts (..., |X|, |Y|) -> (...), float64 nats, never negative."""
    joint = table.double() / table.double().sum((-2, -1), keepdim=True)
    log_x = log_of_probabilities(joint.sum(-1, keepdim=True))
    log_y = log_of_probabilities(joint.sum(-2, keepdim=True))
    return divergence_terms(log_of_probabilities(joint), log_x + log_y).sum((-2, -1))


def entropy_bias(counts: Tensor) -> Tensor:
    """First-order bias of the plug-in entropy, −(m − 1)/2N over the m non-empty cells: (..., K) -> (...)."""
    return -((counts > 0).sum(-1) - 1).double() / (2 * counts.sum(-1))


def mutual_information_bias(table: Tensor) -> Tensor:
    """First-order bias of the plug-in mutual information, −(m_X + m_Y − m_XY − 1)/2N: (..., X, Y) -> (...)."""
    cells_x = (table.sum(-1) > 0).sum(-1)
    cells_y = (table.sum(-2) > 0).sum(-1)
    cells_xy = (table > 0).sum((-2, -1))
    return -(cells_x + cells_y - cells_xy - 1).double() / (2 * table.sum((-2, -1)))


def miller_madow_entropy(counts: Tensor) -> Tensor:
    """Ĥ + (m − 1)/2N of counts (..., K) -> (...), float64 nats."""
    return plug_in_entropy(counts) - entropy_bias(counts)


def miller_madow_mutual_information(table: Tensor) -> Tensor:
    """Î + (m_X + m_Y − m_XY − 1)/2N of joint counts (..., |X|, |Y|) -> (...), float64 nats; may be < 0."""
    return plug_in_mutual_information(table) - mutual_information_bias(table)


Statistic = Callable[[Tensor], Tensor]

ENTROPY_ESTIMATORS: dict[EstimatorName, Statistic] = {
    "plug_in": plug_in_entropy,
    "miller_madow": miller_madow_entropy,
}
MUTUAL_INFORMATION_ESTIMATORS: dict[EstimatorName, Statistic] = {
    "plug_in": plug_in_mutual_information,
    "miller_madow": miller_madow_mutual_information,
}


def estimate_entropy(
    counts: Tensor, *, estimator: EstimatorName = "miller_madow", resampling: Resampling | None = None
) -> Estimate:
    """Estimate H(X) from counts (K,) of each outcome; with `resampling`, with its bootstrap interval.

    Raises ValueError for negative or fractional counts, or none at all.
    """
    counts = _checked_counts(counts, 1)
    return _estimate(counts, ENTROPY_ESTIMATORS[estimator], entropy_bias, estimator, resampling)


def estimate_mutual_information(
    table: Tensor, *, estimator: EstimatorName = "miller_madow", resampling: Resampling | None = None
) -> Estimate:
    """Estimate I(X;Y) from joint counts (|X|, |Y|), such as a confusion matrix; see `estimate_entropy`."""
    table = _checked_counts(table, 2)
    statistic = MUTUAL_INFORMATION_ESTIMATORS[estimator]
    return _estimate(table, statistic, mutual_information_bias, estimator, resampling)


def _estimate(
    counts: Tensor, statistic: Statistic, bias: Statistic, name: EstimatorName, resampling: Resampling | None
) -> Estimate:
    value = float(statistic(counts))
    value_bias = float(bias(counts)) if name == "plug_in" else 0.0
    interval = None
    if resampling is not None:
        resampled = torch.cat([statistic(chunk) for chunk in resampled_counts(counts, resampling)])
        interval = normal_interval(value, value_bias, resampled, resampling)
    return Estimate(
        value=value,
        estimator=name,
        num_samples=int(counts.sum()),
        num_cells=int((counts > 0).sum()),
        bias=value_bias,
        unseen_mass=float((counts == 1).sum() / counts.sum()),
        interval=interval,
    )


def _checked_counts(counts: Tensor, num_dims: int) -> Tensor:
    if counts.dim() != num_dims:
        raise ValueError(f"Counts have shape {tuple(counts.shape)}; expected {num_dims} dimension(s).")
    whole = counts.long()
    if not bool((counts >= 0).all()) or not bool((whole == counts).all()):
        raise ValueError(
            "Counts must be whole and not negative; for probabilities use `entropy` or `mutual_information`."
        )
    if int(whole.sum()) == 0:
        raise ValueError("All counts are 0; an estimate needs at least one sample.")
    return whole.cpu()
