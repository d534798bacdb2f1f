import numpy as np
import pytest
import torch
from scipy import stats

from tests.reference import evaluation as reference
from workers.evaluation.intervals import mean_intervals, resampling_for, wilson
from workers.information.bootstrap import Resampling, resample_weights


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 50), (50, 50), (7, 9), (961, 1000), (3, 100_000)]
)
def test_the_wilson_interval_is_scipys_and_the_quadratics(successes: int, trials: int) -> None:
    found = wilson(successes, trials)
    oracle = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-12)
    assert (found.low, found.high) == pytest.approx(reference.wilson(successes, trials), abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_the_wilson_interval_covers_the_true_rate_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    hits = [w.low <= 0.9 <= w.high for w in (wilson(int(k), 300) for k in rng.binomial(300, 0.9, size=4000))]
    assert 0.935 < np.mean(hits) < 0.965


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 5), (6, 5)])
def test_a_share_of_nothing_is_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to n of n"):
        wilson(successes, trials)


def test_the_bootstrap_interval_is_the_literal_one_over_the_same_resamples() -> None:
    rows = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    resampling = Resampling(num_resamples=300, seed=4)
    weights = torch.cat(list(resample_weights(30, resampling))).long()
    resamples = [[i for i, times in enumerate(row.tolist()) for _ in range(times)] for row in weights]
    for column, interval in enumerate(mean_intervals(rows, resampling)):
        values = rows[:, column].tolist()

        def mean(drawn: list[int], values: list[float] = values) -> float:
            return sum(values[i] for i in drawn) / len(drawn)

        expected = reference.paired_percentile_interval(mean, resamples)
        assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-12)
        assert interval.value == pytest.approx(sum(values) / 30)


def test_the_bootstrap_is_near_scipys() -> None:
    values = torch.rand(400, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64).square()
    (found,) = mean_intervals(values, resampling_for(400))
    oracle = stats.bootstrap((values[:, 0].numpy(),), np.mean, n_resamples=10_000, method="percentile", rng=2)
    width = oracle.confidence_interval.high - oracle.confidence_interval.low
    assert found.low == pytest.approx(oracle.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(oracle.confidence_interval.high, abs=0.05 * width)


def test_a_large_split_gets_fewer_resamples_but_a_thousand_at_least() -> None:
    assert resampling_for(10_000).num_resamples == 10_000
    assert resampling_for(100_000).num_resamples == 2_000
    assert resampling_for(10**8).num_resamples == 1_000
