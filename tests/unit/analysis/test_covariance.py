import numpy as np
import pytest
import torch

from tests.reference import analysis as reference
from workers.analysis.covariance import Covariance, explained, explained_by_chance


def mixed(rows: int = 300, units: int = 6, seed: int = 0) -> torch.Tensor:
    """Rows of units that share some of what they say: (rows, units) float64."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    own = torch.randn(rows, units, generator=generator, dtype=torch.float64)
    return hidden @ torch.randn(3, units, generator=generator, dtype=torch.float64) + 0.7 * own + 5


def test_it_is_the_r_squared_of_a_regression_on_all_other_units() -> None:
    rows = mixed()
    found = explained(torch.cov(rows.T))
    for unit in range(rows.shape[1]):
        assert float(found[unit]) == pytest.approx(reference.explained(rows.numpy(), unit), abs=1e-6)


def test_the_scale_of_a_unit_does_not_matter() -> None:
    rows = mixed()
    scaled = rows * torch.tensor([1.0, 1e-4, 1e3, 1.0, 1e-6, 10.0])
    torch.testing.assert_close(explained(torch.cov(scaled.T)), explained(torch.cov(rows.T)), rtol=0, atol=1e-9)


def test_copies_and_sums_are_explained_wholly() -> None:
    rows = mixed(units=4)
    copies = torch.cat([rows, rows[:, :1]], 1)
    assert float(explained(torch.cov(copies.T))[[0, 4]].min()) > 1 - 1e-6
    summed = torch.cat([rows, rows.sum(1, keepdim=True)], 1)
    assert float(explained(torch.cov(summed.T)).min()) > 1 - 1e-6


def test_unrelated_units_show_what_chance_gives() -> None:
    shown = [
        float(explained(torch.cov(torch.randn(5, 60, generator=torch.Generator().manual_seed(seed)).double())).mean())
        for seed in range(200)
    ]
    assert np.mean(shown) == pytest.approx(explained_by_chance(5, 60), abs=0.01)


@pytest.mark.parametrize(("units", "expected"), [(0, []), (1, [0.0])])
def test_a_unit_alone_is_explained_by_nothing(units: int, expected: list[float]) -> None:
    assert explained(torch.eye(units, dtype=torch.float64)).tolist() == expected


def test_sums_do_not_depend_on_the_batches_and_indices_are_positions() -> None:
    rows = mixed(rows=48, units=6)
    channels = rows.reshape(48, 3, 2, 1).permute(1, 2, 3, 0)  # three units of two indices
    whole, parts = (Covariance(channels[..., 0, 0].clone()) for _ in range(2))
    whole.update(channels)
    for part in channels.split(7, dim=3):
        parts.update(part)
    torch.testing.assert_close(parts.covariance(), whole.covariance(), rtol=1e-10, atol=1e-12)
    centred = (channels - channels.mean(3, keepdim=True)).flatten(1)
    torch.testing.assert_close(whole.covariance(), centred @ centred.T / 96)
    assert whole.rows == parts.rows == 96


def test_a_unit_is_constant_where_no_example_but_rounding_moves_it() -> None:
    values = torch.linspace(0.1, 0.9, 5)[:, None].expand(3, 1, 5, 10).clone()  # another value at every position
    values[0] += torch.rand(5, 10, generator=torch.Generator().manual_seed(0)) * 1e-8
    values[1, 0, 2, 7] += 0.01
    values[2] = 0
    sums = Covariance(values[..., 0, 0].clone())
    for part in values.split(4, dim=3):
        sums.update(part)
    assert sums.constant.tolist() == [True, False, True]
