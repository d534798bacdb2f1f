"""Means with their standard errors, over a stream."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.pruning.moments import Moments


@given(st.integers(2, 40), st.integers(1, 5), st.integers(0, 1000))
def test_mean_and_standard_error_do_not_depend_on_the_cut(examples: int, units: int, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((examples, units))
    first, second = Moments(units), Moments(units)
    cut = seed % examples
    first.update(torch.from_numpy(values[:cut]))
    second.update(torch.from_numpy(values[cut:]))
    first.merge(second)
    np.testing.assert_allclose(first.mean(), values.mean(0), atol=1e-12)
    np.testing.assert_allclose(first.error(), values.std(0, ddof=1) / np.sqrt(examples), rtol=1e-6, atol=1e-9)


def test_some_units_may_be_counted_alone() -> None:
    moments = Moments(4)
    moments.update(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([3, 1]))
    assert moments.count.tolist() == [0, 2, 0, 2]
    assert moments.mean()[[3, 1]].tolist() == [2.0, 4.0]
    assert moments.mean()[[0, 2]].isnan().all()


def test_one_example_has_no_error() -> None:
    moments = Moments(1)
    moments.update(torch.ones(1, 1))
    assert moments.error().isnan().all()
