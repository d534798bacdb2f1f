"""Moments, and rows where there are few, hold what a ridge regression and its error need, however they came in."""

from functools import reduce
from operator import add
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.reference import refit as reference
from workers.pruning.repair.frontier import Frontier
from workers.pruning.repair.gram import Gram
from workers.pruning.repair.regression import Evidence, Solution, relative_error
from workers.pruning.repair.rows import Rows
from workers.pruning.repair.sampling import Sample

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn((90, 2, 5), generator=GENERATOR, dtype=torch.float64) * 3 + 2
Z = X @ torch.randn((5, 3), generator=GENERATOR, dtype=torch.float64)
Z += torch.randn(Z.shape, generator=GENERATOR, dtype=torch.float64)
PARTS = (1, 0, 40, 49)


Kind = type[Gram] | type[Rows]
kinds = pytest.mark.parametrize("kind", [Gram, Rows])


def streamed(kind: Kind, x: Tensor = X, z: Tensor = Z) -> Evidence:
    parts = [kind.of(*part) for part in zip(x.split(PARTS), z.split(PARTS), strict=True) if len(part[0])]
    return reduce(add, parts)


@kinds
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_a_solution_is_that_of_the_formula_for_each_group(kind: Kind, ridge: float, intercept: bool) -> None:
    solution = streamed(kind).solution(ridge, intercept=intercept)
    for group in range(2):
        for output in range(3):
            w, b = reference.solution(X[:, group], Z[:, group, output], ridge, intercept=intercept)
            torch.testing.assert_close(solution.matrix[group, :, output], w, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(solution.bias[group, output], b, rtol=1e-6, atol=1e-6)


@kinds
def test_far_from_zero_nothing_cancels(kind: Kind) -> None:
    here, far = streamed(kind).solution(1e-3, intercept=True), streamed(kind, X + 1e4).solution(1e-3, intercept=True)
    torch.testing.assert_close(far.matrix, here.matrix, rtol=1e-7, atol=1e-9)


def test_without_a_ridge_it_is_least_squares() -> None:
    solution = Gram.of(X[:, :1], Z[:, :1]).solution(0.0, intercept=True)
    centred_X, centred_Z = X[:, 0] - X[:, 0].mean(0), Z[:, 0] - Z[:, 0].mean(0)
    torch.testing.assert_close(solution.matrix[0], torch.linalg.lstsq(centred_X, centred_Z).solution)


@pytest.mark.parametrize(("kind", "rows"), [(Gram, 90), (Rows, 4)])
def test_without_a_ridge_a_dead_column_gets_no_weight(kind: Kind, rows: int) -> None:
    dead = X[:rows, :1].clone()
    dead[..., 2] = 7.0
    solution = kind.of(dead, Z[:rows, :1]).solution(0.0, intercept=True)
    torch.testing.assert_close(solution.matrix[0, 2], torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)
    assert solution.matrix.isfinite().all()


@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
def test_with_fewer_rows_than_columns_rows_and_moments_agree(ridge: float) -> None:
    x, z = X[:8].reshape(8, 1, 10), Z[:8, :1]
    x = torch.cat([x, x.square() / 10], 2)
    by_rows, by_moments = (kind.of(x, z).solution(ridge, intercept=True) for kind in (Rows, Gram))
    torch.testing.assert_close(by_rows.matrix, by_moments.matrix, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(by_rows.bias, by_moments.bias, rtol=1e-5, atol=1e-6)


def predicted(solution: Solution) -> Tensor:
    return torch.einsum("rgk,gkn->rgn", X, solution.matrix) + solution.bias


@kinds
def test_the_error_of_any_weights_is_known(kind: Kind) -> None:
    evidence, variance = streamed(kind), float(Z.var(0, correction=0).sum())
    assert evidence.variance == pytest.approx(variance, rel=1e-9)
    for ridge in (1e-3, 10.0):
        solution = evidence.solution(ridge, intercept=True)
        for one in (solution, Solution(solution.matrix * 0.9, solution.bias + 0.3)):
            expected = float((Z - predicted(one)).square().sum((1, 2)).mean())
            assert evidence.squared_error(one) == pytest.approx(expected, rel=1e-7)
            assert relative_error(evidence, one) == pytest.approx(expected / variance, rel=1e-7)


@kinds
def test_the_mean_and_variance_of_what_is_said_are_known(kind: Kind) -> None:
    solution = streamed(kind).solution(1e-2, intercept=True)
    mean, variance = streamed(kind).statistics(solution)
    said = predicted(solution) - solution.bias
    torch.testing.assert_close(mean, said.mean(0))
    torch.testing.assert_close(variance, said.var(0, correction=0))


def test_a_sample_of_rows_is_spread_over_all_and_the_same_for_all_batches() -> None:
    whole = Sample(1000, 100, seed=3).of_next(1000)
    assert len(whole) == 100
    assert torch.equal(whole // 10, torch.arange(100))
    sample = Sample(1000, 100, seed=3)
    pieces = [sample.of_next(count) + start for start, count in ((0, 7), (7, 500), (507, 493))]
    assert torch.equal(torch.cat(pieces), whole)
    assert torch.equal(Sample(50, 100, seed=3).of_next(50), torch.arange(50))


def test_what_does_not_fit_into_memory_comes_back_from_files_as_it_was() -> None:
    values = {
        batch: {"tensor": torch.randn(10, 10), "parts": (torch.randn(3), [torch.arange(4)]), "size": 3, "none": None}
        for batch in range(3)
    }
    with Frontier(memory_bytes=1000) as frontier:
        for batch, kept in values.items():
            frontier.put(batch, dict(kept))
        assert frontier.spilled_bytes > 0
        folder = Path(frontier.folder.name)
        for batch, kept in values.items():
            taken = frontier.take(batch)
            assert torch.equal(taken["tensor"], kept["tensor"])
            assert torch.equal(taken["parts"][1][0], kept["parts"][1][0])
            assert (taken["size"], taken["none"]) == (3, None)
            assert frontier.take(batch) == {}
    assert not folder.exists()
