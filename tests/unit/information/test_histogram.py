import pytest
import torch
from torch import Tensor

from workers.information.binning import (
    bin_codes,
    count_codes,
    equal_mass_edges,
    equal_width_edges,
)
from workers.information.histogram import ActivationHistogram, grid_key, grid_value


@pytest.fixture
def values() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(500, 4, generator=generator) * torch.tensor([1e-6, 1.0, 50.0, 1e6])


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(500) % 3


def filled(values: Tensor, labels: Tensor, batch_size: int, mantissa_bits: int = 9) -> ActivationHistogram:
    histogram = ActivationHistogram(4, num_labels=3, mantissa_bits=mantissa_bits)
    for rows, classes in zip(torch.split(values, batch_size), torch.split(labels, batch_size), strict=True):
        histogram.update(rows, classes)
    return histogram


def at_once(values: Tensor, labels: Tensor, num_bins: int) -> tuple[Tensor, Tensor]:
    width = equal_width_edges(values.min(0).values, values.max(0).values, num_bins)
    mass = equal_mass_edges(values, num_bins)
    codes = [bin_codes(values, edges) for edges in (width, mass)]
    first, second = (count_codes(code, num_bins, labels, 3) for code in codes)
    return first, second


def test_keys_sort_as_the_values_do_and_round_down() -> None:
    values = torch.tensor([-3e38, -2.0, -1.001, -1.0, -1e-40, 0.0, 1e-40, 1.0, 1.001, 3e38])
    for bits in (0, 3, 9, 23):
        keys = grid_key(values, bits)
        assert keys.tolist() == sorted(keys.tolist())
        assert bool((grid_value(keys, bits) <= values).all())
        assert torch.equal(grid_key(grid_value(keys, bits), bits), keys)
    assert torch.equal(grid_value(grid_key(values, 23), 23), values)
    assert int(grid_key(torch.tensor(-0.0), 23)) == int(grid_key(torch.tensor(0.0), 23))


@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_the_state_does_not_depend_on_the_batch_size(values: Tensor, labels: Tensor, batch_size: int) -> None:
    histogram, whole = filled(values, labels, batch_size), filled(values, labels, 100)
    assert torch.equal(histogram.cells, whole.cells)
    assert torch.equal(histogram.counts, whole.counts)
    assert histogram.num_rows == whole.num_rows == 500


def test_merging_parts_in_any_order_is_counting_the_whole(values: Tensor, labels: Tensor) -> None:
    parts = [filled(values[a:b], labels[a:b], 64) for a, b in ((300, 500), (0, 120), (120, 300))]
    for part in parts[1:]:
        parts[0].merge(part)
    whole = filled(values, labels, 500)
    assert torch.equal(parts[0].cells, whole.cells)
    assert torch.equal(parts[0].counts, whole.counts)


def test_with_all_bits_the_bins_are_those_of_all_the_values_at_once(values: Tensor, labels: Tensor) -> None:
    histogram = filled(values, labels, 64, mantissa_bits=23)
    width, mass = at_once(values, labels, 8)
    assert torch.equal(histogram.equal_width_counts(8), width)
    assert torch.equal(histogram.equal_mass_counts(8), mass)


def test_with_fewer_bits_the_bins_are_those_of_the_rounded_values(values: Tensor, labels: Tensor) -> None:
    histogram = filled(values, labels, 64, mantissa_bits=4)
    width, mass = at_once(grid_value(grid_key(values, 4), 4), labels, 8)
    assert torch.equal(histogram.equal_width_counts(8), width)
    assert torch.equal(histogram.equal_mass_counts(8), mass)


def test_memory_is_bounded_by_the_grid_and_not_by_the_rows() -> None:
    histogram = ActivationHistogram(2, mantissa_bits=5)
    sizes = []
    for seed in range(20):
        histogram.update(torch.rand(5000, 2, generator=torch.Generator().manual_seed(seed)) + 1)
        sizes.append(len(histogram.cells))
    assert sizes[-1] == sizes[0] == 2 * 32
    assert histogram.num_rows == 100_000


def test_what_does_not_belong_to_the_histogram_is_refused(values: Tensor, labels: Tensor) -> None:
    histogram = ActivationHistogram(4, num_labels=3)
    with pytest.raises(ValueError, match="empty"):
        histogram.equal_mass_counts(4)
    with pytest.raises(ValueError, match="no labels"):
        histogram.update(values)
    with pytest.raises(ValueError, match="has 3 units; expected 4"):
        histogram.update(values[:, :3], labels)
    with pytest.raises(ValueError, match="differ"):
        histogram.merge(ActivationHistogram(4))
    with pytest.raises(ValueError, match="mantissa_bits is 24"):
        ActivationHistogram(1, mantissa_bits=24)
