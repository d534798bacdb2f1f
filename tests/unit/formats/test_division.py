"""Dividing rows into splits, against the naive reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import splits as reference
from workers.formats.division import Fractions, divide

FRACTIONS = st.sampled_from([0.0, 0.01, 0.1, 0.15, 0.2, 1 / 3, 0.45])


@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    stratify=st.booleans(),
    validation=FRACTIONS,
    test=FRACTIONS,
    seed=st.integers(0, 2**63 - 1),
)
def test_rows_are_divided_as_the_reference_says(
    labels: list[int], stratify: bool, validation: float, test: float, seed: int
) -> None:
    expected = reference.divide(len(labels), labels if stratify else None, validation, test, seed)
    got = divide(len(labels), np.array(labels) if stratify else None, Fractions(validation, test), seed)
    assert {name: rows.tolist() for name, rows in got.items()} == expected
    assert sorted(row for rows in expected.values() for row in rows) == list(range(len(labels)))


@given(sizes=st.lists(st.integers(3, 12), min_size=1, max_size=8), seed=st.integers(0, 100))
def test_a_class_of_three_rows_or_more_is_in_every_split(sizes: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    for rows in divide(len(labels), labels, Fractions(0.01, 0.01), seed).values():
        assert set(labels[rows]) == set(range(len(sizes)))


def test_shares_of_each_class_are_kept() -> None:
    labels = np.repeat([0, 1], [1000, 100])
    rows = divide(1100, labels, Fractions(0.1, 0.2), seed=0)
    assert {name: np.bincount(labels[chosen]).tolist() for name, chosen in rows.items()} == {
        "train": [700, 70],
        "validation": [100, 10],
        "test": [200, 20],
    }


def test_another_seed_divides_otherwise() -> None:
    one, other = (divide(100, None, Fractions(0.1, 0.2), seed)["test"].tolist() for seed in (0, 1))
    assert one != other


def test_the_division_of_a_seed_is_fixed_for_ever() -> None:
    assert divide(10, None, Fractions(0.2, 0.2), seed=0)["test"].tolist() == [5, 9]


@pytest.mark.parametrize(("validation", "test", "names"), [(0.0, 0.2, ["train", "test"]), (0.0, 0.0, ["train"])])
def test_a_share_of_zero_makes_no_split(validation: float, test: float, names: list[str]) -> None:
    assert list(divide(10, None, Fractions(validation, test), seed=0)) == names
