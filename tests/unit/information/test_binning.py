import numpy as np
import pytest
import torch
from torch import Tensor

from tests.reference import information as reference
from workers.information.binning import (
    bin_codes,
    count_codes,
    equal_mass_edges,
    equal_width_edges,
)


@pytest.fixture
def values() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(101, 3, dtype=torch.float64, generator=generator) * torch.tensor([1.0, 5.0, 0.1])


def test_equal_width_bins_follow_their_formula_and_numpy(values: Tensor) -> None:
    low, high = values.min(0).values, values.max(0).values
    codes = bin_codes(values, equal_width_edges(low, high, 7))
    for unit, column in enumerate(values.T.tolist()):
        expected = [reference.equal_width_code(v, min(column), max(column), 7) for v in column]
        assert codes[:, unit].tolist() == expected
        histogram = np.histogram(column, bins=7)[0]
        assert count_codes(codes, 7)[unit].tolist() == histogram.tolist()


def test_equal_mass_bins_follow_their_formula_and_differ_by_at_most_one(values: Tensor) -> None:
    codes = bin_codes(values, equal_mass_edges(values, 8))
    for unit, column in enumerate(values.T.tolist()):
        assert codes[:, unit].tolist() == [reference.equal_mass_code(v, column, 8) for v in column]
    counts = count_codes(codes, 8)
    assert int(counts.max() - counts.min()) <= 1


def test_ties_stay_together_and_leave_bins_empty() -> None:
    values = torch.tensor([[0.0]] * 8 + [[1.0], [2.0]])
    counts = count_codes(bin_codes(values, equal_mass_edges(values, 5)), 5)
    assert sorted(counts[0].tolist()) == [0, 0, 0, 2, 8]


def test_a_unit_that_never_changes_occupies_one_bin() -> None:
    values = torch.full((20, 1), 3.0)
    edges = equal_width_edges(values.min(0).values, values.max(0).values, 4)
    assert sorted(count_codes(bin_codes(values, edges), 4)[0].tolist()) == [0, 0, 0, 20]


def test_counts_by_label_add_up_to_counts(values: Tensor) -> None:
    labels = torch.arange(101) % 4
    codes = bin_codes(values, equal_mass_edges(values, 6))
    joint = count_codes(codes, 6, labels, 4)
    assert joint.shape == (3, 6, 4)
    assert torch.equal(joint.sum(2), count_codes(codes, 6))
    assert int(joint[1, 2, 3]) == int(((codes[:, 1] == 2) & (labels == 3)).sum())


def test_what_belongs_to_no_bin_is_refused(values: Tensor) -> None:
    edges = equal_mass_edges(values, 3)
    with pytest.raises(ValueError, match="NaN or infinite"):
        bin_codes(values * torch.nan, edges)
    with pytest.raises(ValueError, match="a row per unit"):
        bin_codes(values[:, :2], edges)
    with pytest.raises(ValueError, match="examples, units"):
        bin_codes(values[0], edges)
    with pytest.raises(ValueError, match="at least 2"):
        equal_mass_edges(values, 1)
    with pytest.raises(ValueError, match=r"expected 0\.\.3"):
        count_codes(bin_codes(values, edges), 3, torch.full((101,), 4), 4)
    with pytest.raises(ValueError, match="one per example"):
        count_codes(bin_codes(values, edges), 3, torch.zeros(100), 4)
