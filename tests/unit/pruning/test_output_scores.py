"""Scores from a stream of outputs without each unit: by definition, in any order, with honest errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.reference import criteria as reference
from tests.unit.pruning.subjects import outputs, subject
from workers.pruning.criteria import output_scores
from workers.pruning.criteria.output_scores import OutputSums
from workers.pruning.scores import Scores


@dataclass(frozen=True)
class Part:
    group: str
    units: np.ndarray
    rows: slice
    logits: torch.Tensor


def drawn(num_units: int, examples: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Base logits (N, K) and those without each unit (U, N, K), nearer to the base for later units."""
    generator = torch.Generator().manual_seed(seed)
    base = 2 * torch.randn(examples, classes, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_units, examples, classes, generator=generator, dtype=torch.float64)
    return base, base + noise / torch.arange(1, num_units + 1).double().reshape(-1, 1, 1)


def summed(
    base: Tensor, without: Tensor, parts: Sequence[tuple[np.ndarray, slice]] | None = None, **options: Any
) -> OutputSums:
    sums = OutputSums({"a": len(without)}, base, **options)
    whole = [(np.arange(len(without)), slice(0, len(base)))]
    for units, rows in whole if parts is None else parts:
        sums.update(Part("a", units, rows, without[units][:, rows]))
    return sums


def test_every_score_is_its_definition_over_a_naive_loop() -> None:
    case = subject("resnet8", 6)
    base = outputs(case)
    teacher = base + torch.randn(base.shape, generator=torch.Generator().manual_seed(1)).double()
    stands = reference.statistics(case.network, case.groups, case.reads, case.x)
    sizes = {name: group.num_units for name, group in case.groups.items()}
    own = OutputSums(sizes, base, labels=case.labels)
    taught = OutputSums(sizes, base, reference=teacher, temperature=4.0)
    group = next(iter(sizes))
    without = torch.stack([
        reference.ablated_outputs(case.network, case.reads, case.x, group, unit, "mean", stands) for unit in range(3)
    ])  # fmt: skip
    for sums in (own, taught):
        sums.update(Part(group, np.arange(3), slice(0, 6), without))
    for unit, y in enumerate(without):

        def value(scores: Scores, unit: int = unit) -> float:
            return float(scores.values[group][unit])

        def error(scores: Scores, unit: int = unit) -> float:
            return float(scores.errors[group][unit])

        changes = reference.kl_changes(base, base, y, 1.0)
        assert value(own.output_kl()) == pytest.approx(reference.mean(changes), rel=1e-9, abs=1e-13)
        assert error(own.output_kl()) == pytest.approx(reference.standard_error(changes), rel=1e-6)
        changes = reference.kl_changes(teacher, base, y, 4.0)
        assert value(taught.output_kl()) == pytest.approx(reference.mean(changes), rel=1e-8, abs=1e-12)
        sharper = reference.predictive_entropy(base) - reference.predictive_entropy(y)
        assert value(own.output_entropy("predictive", absolute=False)) == pytest.approx(sharper, rel=1e-9)
        assert value(own.output_entropy("predictive", absolute=True)) == pytest.approx(abs(sharper), rel=1e-9)
        mixed = reference.marginal_entropy(base) - reference.marginal_entropy(y)
        assert value(own.output_entropy("marginal", absolute=False)) == pytest.approx(mixed, rel=1e-9)
        drop = reference.information(base) - reference.information(y)
        assert value(own.information_drop()) == pytest.approx(drop, rel=1e-9)
        changes = [b - a for a, b in zip(
            reference.losses(base, case.labels), reference.losses(y, case.labels), strict=True
        )]  # fmt: skip
        assert value(own.loss_delta()) == pytest.approx(reference.mean(changes), rel=1e-9)
        assert error(own.loss_delta()) == pytest.approx(reference.standard_error(changes), rel=1e-6)


def test_units_that_never_came_have_no_score() -> None:
    base, without = drawn(4, 10, 3)
    sums = summed(base, without, [(np.array([1, 3]), slice(0, 10))])
    for scores in (sums.output_kl(), sums.information_drop(), sums.output_entropy("marginal", absolute=False)):
        assert scores.values["a"].isnan().tolist() == [True, False, True, False]


@given(st.data())
def test_any_order_and_cut_of_the_stream_and_any_merge_give_the_same_scores(data: st.DataObject) -> None:
    base, without = drawn(5, 40, 4)
    labels = torch.arange(40) % 4
    whole = summed(base, without, labels=labels)
    cuts = sorted(data.draw(st.sets(st.integers(1, 39), max_size=4)))
    bounds = [0, *cuts, 40]
    pieces = [
        (units, slice(start, stop))
        for start, stop in pairwise(bounds)
        for units in (np.array([0, 2, 4]), np.array([3, 1]))
    ]
    shuffled = data.draw(st.permutations(pieces))
    split = data.draw(st.integers(0, len(shuffled)))
    merged = summed(base, without, shuffled[:split], labels=labels)
    merged.merge(summed(base, without, shuffled[split:], labels=labels))
    for read_out in (OutputSums.output_kl, OutputSums.information_drop, OutputSums.loss_delta):
        expected, found = read_out(whole), read_out(merged)
        torch.testing.assert_close(found.values["a"], expected.values["a"], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.errors["a"], expected.errors["a"], rtol=1e-6, atol=1e-9)


@given(st.integers(0, 1000))
def test_the_divergence_from_the_networks_own_outputs_is_never_negative(seed: int) -> None:
    base, without = drawn(3, 20, 3, seed)
    assert (summed(base, without).output_kl().values["a"] >= 0).all()


def test_an_ablation_that_changes_nothing_scores_zero() -> None:
    base, _ = drawn(1, 33, 5)
    sums = summed(base, base[None], labels=torch.zeros(33, dtype=torch.int64))
    read_outs = (
        sums.output_kl(),
        sums.loss_delta(),
        sums.information_drop(),
        sums.output_entropy("predictive", absolute=False),
    )
    for scores in read_outs:
        assert abs(float(scores.values["a"])) < 1e-12
        assert float(scores.errors["a"]) < 1e-10


def test_the_error_of_marginal_entropy_is_the_spread_of_its_influences() -> None:
    base, without = drawn(4, 4000, 3)
    found = summed(base, without).output_entropy("marginal", absolute=False).errors["a"]
    for unit, y in enumerate(without):
        influences = zip(reference.marginal_influences(base), reference.marginal_influences(y), strict=True)
        expected = reference.standard_error([before - after for before, after in influences])
        assert float(found[unit]) == pytest.approx(expected, rel=0.45)  # 32 folds tell it to 13%


def test_intermediate_results_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    base, without = drawn(6, 12, 3)
    whole = summed(base, without).information_drop()
    monkeypatch.setattr(output_scores, "CHUNK_BYTES", 1)
    torch.testing.assert_close(summed(base, without).information_drop().values, whole.values)


def test_removing_what_makes_the_network_sure_is_negative_by_the_literal_formula() -> None:
    base = torch.tensor([[4.0, 0.0]] * 20 + [[0.0, 4.0]] * 20, dtype=torch.float64)
    sums = summed(base, (base / 4)[None])  # without the unit it is less sure
    assert float(sums.output_entropy("predictive", absolute=False).values["a"]) < 0
    assert float(sums.information_drop().values["a"]) > 0
    assert float(sums.output_kl().values["a"]) > 0
