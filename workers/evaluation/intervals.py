"""How sure a reported number is: 95% intervals, in the one form that a report uses.

A proportion (accuracy, agreement) gets the Wilson score interval: unlike p ± 1.96·√(p(1−p)/n) it stays inside
[0, 1] and does not shrink to nothing when every example is right. A mean of per-example quantities gets the
percentile interval of a paired, seeded bootstrap over the examples.

Sources: Wilson 1927; Brown, Cai and DasGupta 2001; Efron and Tibshirani 1993.
"""

from math import sqrt
from statistics import NormalDist

from torch import Tensor

from service.contract.reports import Interval
from workers.information.bootstrap import Resampling, percentile_interval, resampled_means

LEVEL = 0.95
#: The standard normal's 97.5% point.
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)

#: Weights drawn at most, resamples times examples: seconds of work; more examples get fewer resamples.
MAX_WEIGHTS = 200_000_000
MAX_RESAMPLES, MIN_RESAMPLES = 10_000, 1_000


def wilson(successes: int, trials: int) -> Interval:
    """The share successes/trials with its Wilson score interval; raises ValueError without a trial."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"There are {successes} successes in {trials} trials; expected 0 to n of n ≥ 1.")
    share = successes / trials
    denominator = 1 + Z**2 / trials
    centre = (share + Z**2 / (2 * trials)) / denominator
    half = Z * sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2)) / denominator
    # At 0 and n the bound is exactly the share; rounding must not push it past.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Interval(value=share, low=low, high=high)


def resampling_for(num_examples: int, seed: int = 0) -> Resampling:
    """10,000 resamples up to 20,000 examples, then fewer, but never below 1,000."""
    affordable = MAX_WEIGHTS // max(1, num_examples)
    return Resampling(num_resamples=max(MIN_RESAMPLES, min(MAX_RESAMPLES, affordable)), level=LEVEL, seed=seed)


def mean_intervals(rows: Tensor, resampling: Resampling) -> tuple[Interval, ...]:
    """Means of m per-example quantities (N, m), each with its bootstrap interval from the same resamples."""
    values = rows.double().mean(0)
    resampled = resampled_means(rows, resampling)
    found = (
        percentile_interval(float(value), column, resampling)
        for value, column in zip(values, resampled.unbind(1), strict=True)
    )
    return tuple(Interval(value=interval.value, low=interval.low, high=interval.high) for interval in found)
