import time
from statistics import NormalDist

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from tests.reference import information as reference
from workers.information.bootstrap import (
    Resampling,
    function_of_means_interval,
    mean_interval,
    normal_interval,
    paired_difference_interval,
    percentile_interval,
    resample_weights,
    resampled_counts,
    resampled_means,
)


def sample(num_rows: int) -> Tensor:
    return torch.randn(num_rows, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).exp()


def test_each_resample_draws_as_many_rows_as_there_are() -> None:
    weights = torch.cat(list(resample_weights(50, Resampling(200, seed=3))))
    assert weights.shape == (200, 50)
    assert bool((weights.sum(1) == 50).all())
    # Binomial(50, 1/50): mean 1, variance 0.98.
    assert float(weights.mean()) == 1.0
    assert float(weights.var()) == pytest.approx(0.98, abs=0.05)


def test_the_draw_depends_on_the_seed_and_not_on_the_chunks() -> None:
    def draw(seed: int, chunk: int) -> Tensor:
        return torch.cat(list(resample_weights(30, Resampling(41, seed=seed), chunk_weights=chunk)))

    torch.testing.assert_close(draw(5, 30 * 7), draw(5, 10**6), rtol=0, atol=0)
    assert not torch.equal(draw(5, 10**6), draw(6, 10**6))


def test_resampled_means_are_distributed_as_those_drawn_one_by_one() -> None:
    values = sample(40)
    naive = reference.bootstrap_means(values.tolist(), 50_000, seed=1)
    p_values = [
        scipy.stats.ks_2samp(resampled_means(values, Resampling(4000, seed=seed)).numpy(), naive).pvalue
        for seed in range(20)
    ]
    # One p-value alone is below 0.01 once in a hundred seeds; three of twenty are, once in a thousand tests.
    assert sum(p < 0.01 for p in p_values) < 3


def test_the_percentile_interval_agrees_with_scipy() -> None:
    values = sample(200)
    interval = mean_interval(values, Resampling(10_000))
    oracle = scipy.stats.bootstrap(
        (values.numpy(),), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(0)
    ).confidence_interval
    width = oracle.high - oracle.low
    assert interval.value == pytest.approx(float(values.mean()))
    assert interval.low == pytest.approx(oracle.low, abs=0.05 * width)
    assert interval.high == pytest.approx(oracle.high, abs=0.05 * width)
    assert (interval.level, interval.num_resamples, interval.method) == (0.95, 10_000, "percentile")


def test_ten_thousand_resamples_of_ten_thousand_rows_take_seconds() -> None:
    rows = torch.stack([sample(10_000), sample(10_000).sqrt()], 1)
    start = time.process_time()
    means = resampled_means(rows, Resampling(10_000))
    assert time.process_time() - start < 15  # about 3 s of one core
    assert means.shape == (10_000, 2)
    expected = rows.std(0, correction=0) / 100
    torch.testing.assert_close(means.std(0), expected, rtol=0.05, atol=0)


def test_a_paired_interval_lets_what_is_shared_cancel() -> None:
    shared = sample(300)
    first = shared + 0.1 + 0.001 * torch.randn(300, dtype=torch.float64)
    paired = paired_difference_interval(first, shared, Resampling(500))
    assert 0.099 < paired.low < paired.value < paired.high < 0.101
    alone = mean_interval(first, Resampling(500))
    assert alone.high - alone.low > 100 * (paired.high - paired.low)


def test_a_function_of_means_sees_all_means_of_one_resample() -> None:
    values = sample(100)
    ratio = function_of_means_interval(
        torch.stack([2 * values, values], 1), lambda means: means[:, 0] / means[:, 1], Resampling(100)
    )
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((2.0, 2.0, 2.0))


def test_the_normal_interval_is_centred_on_the_value_without_its_bias() -> None:
    resampled = torch.tensor([-1.0, 1.0] * 50)
    interval = normal_interval(10.0, 0.5, resampled, Resampling(100, level=0.9))
    reach = NormalDist().inv_cdf(0.95)
    assert (interval.low, interval.high) == pytest.approx((9.5 - reach, 9.5 + reach))


def test_intervals_nest_by_level() -> None:
    resampled = torch.linspace(0, 1, 1001)
    interval = percentile_interval(0.5, resampled, Resampling(1001, level=0.5))
    assert (interval.low, interval.high) == pytest.approx((0.25, 0.75))


def test_resampled_counts_are_the_multinomial_of_the_table() -> None:
    table = torch.tensor([[30, 0], [50, 20]])
    chunks = list(resampled_counts(table, Resampling(5000, seed=2), chunk_weights=4000))
    assert len(chunks) > 1
    counts = torch.cat(chunks)
    assert bool((counts.sum((1, 2)) == 100).all())
    assert bool((counts[:, 0, 1] == 0).all())
    torch.testing.assert_close(counts.double().mean(0), table.double(), rtol=0, atol=0.5)
    assert float(counts[:, 0, 0].double().var()) == pytest.approx(100 * 0.3 * 0.7, rel=0.1)


def test_what_cannot_be_resampled_is_refused() -> None:
    with pytest.raises(ValueError, match="1 values are infinite or NaN"):
        mean_interval(torch.tensor([0.0, torch.inf]))
    with pytest.raises(ValueError, match="no rows"):
        mean_interval(torch.empty(0))
    with pytest.raises(ValueError, match="same examples"):
        paired_difference_interval(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="confidence level is 95"):
        Resampling(level=95)
    with pytest.raises(ValueError, match="at least 1"):
        Resampling(num_resamples=0)
