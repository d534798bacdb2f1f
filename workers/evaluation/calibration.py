"""Calibration: when a model says 80%, is it right 80% of the time?

The confidence of a prediction is its largest probability. Examples are sorted by confidence and cut into bins
of equal numbers of examples; the expected calibration error is the mean gap |accuracy − confidence| of the bins,
weighted by their examples. Bins of equal *width*, the older choice, leave most bins almost empty for a trained
network and let a few examples decide.

Equal confidences are never parted, so that the result does not depend on the order of the examples. The error
is biased upwards in small samples, since the gap of each bin is never negative: `error_by_chance` says how much
even a calibrated model would show.

Sources: Naeini et al. 2015; Guo et al. 2017; Nixon et al. 2019 (equal-mass bins).
"""

from math import pi, sqrt

import torch
from torch import Tensor

from service.contract.reports import ReliabilityBin
from workers.evaluation.quality import correct

NUM_BINS = 15


def reliability(logits: Tensor, labels: Tensor, num_bins: int = NUM_BINS) -> tuple[ReliabilityBin, ...]:
    """Equal-mass bins of logits (n, K) and labels (n,), from the least to the most confident; at most `num_bins`."""
    confidence = logits.double().softmax(1).amax(1)
    right = correct(logits, labels).double()
    bins = bins_of(logits, num_bins)
    sizes = torch.bincount(bins, minlength=num_bins)
    confidences = torch.bincount(bins, weights=confidence, minlength=num_bins) / sizes
    accuracies = torch.bincount(bins, weights=right, minlength=num_bins) / sizes
    columns = zip(confidences.tolist(), accuracies.tolist(), sizes.tolist(), strict=True)
    return tuple(
        ReliabilityBin(confidence=mean_confidence, accuracy=share, examples=size)
        for mean_confidence, share, size in columns
        if size > 0
    )


def bins_of(logits: Tensor, num_bins: int = NUM_BINS) -> Tensor:
    """The bin of each example of logits (n, K), (n,) int64; some bins may be empty."""
    confidence = logits.double().softmax(1).amax(1)
    ordered = confidence.sort().values
    firsts = torch.tensor([len(ordered) * index // num_bins for index in range(1, num_bins)], dtype=torch.int64)
    # Searching by value, not by rank, puts equal confidences into one bin.
    return torch.searchsorted(ordered[firsts], confidence, right=True)


def calibration_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """Expected calibration error: Σ (bin's share of the examples)·|accuracy − confidence|."""
    total = sum(entry.examples for entry in bins)
    return sum(entry.examples * abs(entry.accuracy - entry.confidence) for entry in bins) / total


def error_by_chance(bins: tuple[ReliabilityBin, ...]) -> float:
    """About the error that a perfectly calibrated model of these confidences would show on as many examples.

    A bin of m examples with true rate q has an accuracy with standard deviation √(q(1 − q)/m); the mean absolute
    value of a normal variable is √(2/π) of its standard deviation.
    """
    total = sum(entry.examples for entry in bins)
    gaps = (
        entry.examples * sqrt(2 * entry.confidence * (1 - entry.confidence) / (pi * entry.examples)) for entry in bins
    )
    return sum(gaps) / total
