"""The bootstrap: how much a number measured on N examples would vary on N others.

A resample draws N of the N examples with replacement. What matters of it is how often each example was
drawn, a row of multinomial weights, and the mean of any per-example quantity under it is one dot product.
So R resamples of N examples with m quantities each are a matrix product (R, N) @ (N, m), done in chunks
that bound the memory. All m quantities see the *same* resamples, which is what makes a comparison paired:
teacher and student are weighed on the same drawn examples, and what they share cancels.

The draw depends on the seed alone: not on the chunk size, and not on the device of the data.

Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 13 and 14.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import torch
from torch import Tensor

#: Weights held at a time: 2²² float64 are 32 MiB, and the indexes they come from as much again.
CHUNK_WEIGHTS = 2**22


@dataclass(frozen=True)
class Resampling:
    """How an interval is made: how many resamples, at which confidence level, from which seed."""

    num_resamples: int = 10_000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_resamples < 1:
            raise ValueError(f"The number of resamples is {self.num_resamples}; expected at least 1.")
        if not 0 < self.level < 1:
            raise ValueError(f"The confidence level is {self.level}; expected a number between 0 and 1.")


DEFAULT = Resampling()


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval for a value, in the value's own unit."""

    value: float
    low: float
    high: float
    level: float
    num_resamples: int
    method: Literal["percentile", "normal"]


def resample_weights(
    num_rows: int, resampling: Resampling = DEFAULT, *, chunk_weights: int = CHUNK_WEIGHTS
) -> Iterator[Tensor]:
    """Yield the resamples in chunks (c, N): float64 multinomial counts on the CPU, each row summing to N.

    For statistics that are no function of means, such as a calibration error with equal-mass bins.
    """
    if num_rows < 1:
        raise ValueError("There are no rows to resample; a bootstrap needs at least 1.")
    generator = torch.Generator().manual_seed(resampling.seed)
    rows_per_chunk = max(1, chunk_weights // num_rows)
    for start in range(0, resampling.num_resamples, rows_per_chunk):
        size = (min(rows_per_chunk, resampling.num_resamples - start), num_rows)
        drawn = torch.randint(num_rows, size, generator=generator)
        ones = torch.ones((), dtype=torch.float64).expand(size)
        yield torch.zeros(size, dtype=torch.float64).scatter_add_(1, drawn, ones)


def resampled_means(rows: Tensor, resampling: Resampling = DEFAULT) -> Tensor:
    """Means of per-example quantities under every resample: (N,) -> (R,), (N, m) -> (R, m); float64.

    Raises ValueError where a row is not finite: its mean has no interval.
    """
    rows = rows.detach().double().cpu()
    if not bool(torch.isfinite(rows).all()):
        broken = int((~torch.isfinite(rows)).sum())
        raise ValueError(f"{broken} values are infinite or NaN; an interval of their mean does not exist.")
    if not rows.shape[0]:
        raise ValueError("There are no rows to resample; a bootstrap needs at least 1.")
    flat = rows.reshape(rows.shape[0], -1)
    chunks = resample_weights(rows.shape[0], resampling)
    means = torch.cat([weights @ flat for weights in chunks]) / rows.shape[0]
    return means.reshape(resampling.num_resamples, *rows.shape[1:])


def percentile_interval(value: float, resampled: Tensor, resampling: Resampling = DEFAULT) -> Interval:
    """The central `level` of the resampled values (R,): for means and other nearly unbiased statistics."""
    low, high = _central(resampled, resampling.level)
    return Interval(value, low, high, resampling.level, len(resampled), "percentile")


def normal_interval(value: float, bias: float, resampled: Tensor, resampling: Resampling = DEFAULT) -> Interval:
    """Value − bias ± z times the standard deviation of the resampled values (R,).

    For statistics with a known bias, such as an entropy: each resample is biased against the sample as the
    sample is against the truth, so the percentiles of resamples lie off the mark by twice the bias (they
    may miss the truth every time), while their spread stays right.
    """
    centre = value - bias
    reach = NormalDist().inv_cdf((1 + resampling.level) / 2) * float(resampled.double().std(correction=0))
    return Interval(value, centre - reach, centre + reach, resampling.level, len(resampled), "normal")


def mean_interval(rows: Tensor, resampling: Resampling = DEFAULT) -> Interval:
    """Percentile interval for the mean of a per-example quantity (N,)."""
    return function_of_means_interval(rows, lambda means: means, resampling)


def paired_difference_interval(first: Tensor, second: Tensor, resampling: Resampling = DEFAULT) -> Interval:
    """Percentile interval for mean(first) − mean(second), both (N,) on the same examples in one order."""
    if first.shape != second.shape:
        raise ValueError(
            f"Paired quantities have shapes {tuple(first.shape)} and {tuple(second.shape)}; expected one "
            "value of each for the same examples."
        )
    return mean_interval(first.double() - second.double(), resampling)


def function_of_means_interval(
    rows: Tensor, function: Callable[[Tensor], Tensor], resampling: Resampling = DEFAULT
) -> Interval:
    """Percentile interval for f(mean of rows): rows (N, ...), f from means (R, ...) to values (R,).

    H(p̄) − E H(p) is such a function of the means of p and of H(p); a ratio of means is another.
    """
    means = rows.detach().double().cpu().mean(0, keepdim=True)
    value = float(function(means)[0])
    return percentile_interval(value, function(resampled_means(rows, resampling)), resampling)


def resampled_counts(
    counts: Tensor, resampling: Resampling = DEFAULT, *, chunk_weights: int = CHUNK_WEIGHTS
) -> Iterator[Tensor]:
    """Yield resampled tables of counts in chunks (c, *counts.shape), int64, each with the original total.

    The same distribution as resampling the N examples behind the table, at the cost of its cells alone.
    """
    flat = counts.detach().reshape(-1).cpu().numpy().astype(np.int64)
    occupied = flat.nonzero()[0]
    total = int(flat.sum())
    generator = np.random.default_rng(resampling.seed)
    rows_per_chunk = max(1, chunk_weights // max(1, flat.size))
    for start in range(0, resampling.num_resamples, rows_per_chunk):
        size = min(rows_per_chunk, resampling.num_resamples - start)
        table = np.zeros((size, flat.size), dtype=np.int64)
        table[:, occupied] = generator.multinomial(total, flat[occupied] / total, size=size)
        yield torch.from_numpy(table).reshape(size, *counts.shape)


def _central(resampled: Tensor, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    # NumPy's quantile, since torch's takes at most 16 million elements.
    low, high = np.quantile(resampled.double().numpy(), [tail, 1 - tail])
    return float(low), float(high)
