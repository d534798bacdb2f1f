from collections import Counter
from collections.abc import Callable
from typing import get_args

import infomeasure
import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor

from tests.reference import information as reference
from workers.information.bootstrap import Resampling
from workers.information.estimators import (
    ENTROPY_ESTIMATORS,
    MUTUAL_INFORMATION_ESTIMATORS,
    Estimate,
    EstimatorName,
    estimate_entropy,
    estimate_mutual_information,
)

RNG = np.random.default_rng(4)
X = RNG.integers(0, 5, 300)
Y = (X + RNG.integers(0, 3, 300)) % 6


def counts(symbols: np.ndarray, num_symbols: int) -> Tensor:
    return torch.from_numpy(np.bincount(symbols, minlength=num_symbols))


def table() -> Tensor:
    return counts(X * 6 + Y, 30).view(5, 6)


def test_every_estimator_has_its_functions() -> None:
    assert set(ENTROPY_ESTIMATORS) == set(MUTUAL_INFORMATION_ESTIMATORS) == set(get_args(EstimatorName))


def test_plug_in_estimates_agree_with_formula_and_oracles() -> None:
    entropy = estimate_entropy(counts(X, 5), estimator="plug_in")
    assert entropy.value == pytest.approx(reference.entropy([n / 300 for n in Counter(X.tolist()).values()]))
    assert entropy.value == pytest.approx(infomeasure.entropy(X, approach="discrete"))
    assert entropy.in_base(2) == pytest.approx(infomeasure.entropy(X, approach="discrete", base=2))
    information = estimate_mutual_information(table(), estimator="plug_in")
    assert information.value == pytest.approx(mutual_info_score(X, Y))
    assert information.value == pytest.approx(infomeasure.mutual_information(X, Y, approach="discrete"))


def test_miller_madow_estimates_agree_with_formula_and_oracle() -> None:
    entropy = estimate_entropy(counts(X, 9))
    assert entropy.value == pytest.approx(reference.miller_madow_entropy(X.tolist()))
    assert entropy.value == pytest.approx(infomeasure.entropy(X, approach="miller_madow"))
    information = estimate_mutual_information(table())
    by_formula = reference.miller_madow_mutual_information(X.tolist(), Y.tolist())
    assert information.value == pytest.approx(by_formula)


def test_an_estimate_says_what_it_is_and_what_it_rests_on() -> None:
    estimate = estimate_entropy(torch.tensor([5, 0, 1, 2]), estimator="plug_in")
    assert estimate.value == pytest.approx(reference.entropy([5 / 8, 1 / 8, 2 / 8]))
    assert estimate == Estimate(
        value=estimate.value,
        estimator="plug_in",
        num_samples=8,
        num_cells=3,
        bias=-2 / 16,
        unseen_mass=1 / 8,
    )
    assert estimate_entropy(torch.tensor([5, 0, 1, 2])).bias == 0.0


def test_the_stated_bias_is_what_the_plug_in_is_wrong_by_on_average() -> None:
    p = np.array([0.4, 0.3, 0.2, 0.1])
    drawn = torch.from_numpy(np.random.default_rng(0).multinomial(200, p, size=20_000))
    errors = ENTROPY_ESTIMATORS["plug_in"](drawn) - reference.entropy(p.tolist())
    stated = estimate_entropy(torch.tensor([80, 60, 40, 20]), estimator="plug_in").bias
    assert float(errors.mean()) == pytest.approx(stated, rel=0.1)


def test_independent_variables_have_plug_in_information_but_no_miller_madow_information() -> None:
    drawn = torch.from_numpy(np.random.default_rng(1).multinomial(500, np.full(25, 0.04), size=2000))
    tables = drawn.view(-1, 5, 5)
    assert float(MUTUAL_INFORMATION_ESTIMATORS["plug_in"](tables).mean()) == pytest.approx(0.016, rel=0.1)
    corrected = MUTUAL_INFORMATION_ESTIMATORS["miller_madow"](tables)
    assert float(corrected.mean()) == pytest.approx(0.0, abs=0.001)
    assert float(corrected.min()) < 0


Truth = tuple[np.ndarray, Callable[..., Estimate], float]


def geometric() -> Truth:
    p = 0.7 ** np.arange(10)
    return p / p.sum(), estimate_entropy, reference.entropy((p / p.sum()).tolist())


def confusion() -> Truth:
    p = np.eye(4) * 8 + np.arange(16).reshape(4, 4) / 8 + 0.5
    return p / p.sum(), estimate_mutual_information, reference.mutual_information((p / p.sum()).tolist())


@pytest.mark.parametrize("estimator", get_args(EstimatorName))
@pytest.mark.parametrize("truth", [geometric(), confusion()], ids=["entropy", "mutual information"])
def test_stated_intervals_cover_the_known_truth_in_93_to_97_percent(truth: Truth, estimator: EstimatorName) -> None:
    p, estimate, value = truth
    drawn = np.random.default_rng(2).multinomial(2000, p.ravel(), size=1000).reshape(-1, *p.shape)
    hits = 0
    for repetition, sample in enumerate(torch.from_numpy(drawn)):
        stated = estimate(sample, estimator=estimator, resampling=Resampling(200, seed=repetition))
        assert stated.interval is not None
        hits += stated.interval.low <= value <= stated.interval.high
    assert 930 <= hits <= 970


def test_an_undersampled_estimate_says_how_much_it_has_not_seen() -> None:
    drawn = np.random.default_rng(3).multinomial(100, np.full(1000, 0.001))
    assert estimate_entropy(torch.from_numpy(drawn)).unseen_mass > 0.8


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.tensor([0.5, 0.5]), "whole"),
        (torch.tensor([3, -1]), "not negative"),
        (torch.tensor([0, 0]), "at least one sample"),
        (torch.tensor([[1, 2]]), r"expected 1 dimension"),
        (torch.tensor([torch.nan, 1.0]), "whole"),
    ],
)
def test_what_are_no_counts_is_refused(wrong: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_entropy(wrong)
