"""What stands in for ablated units: zero, means, and what the rest of the group predicts."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.reference import criteria as reference
from tests.unit.pruning.subjects import AMPLE, Subject, subject
from workers.pruning import observation, replacement
from workers.pruning.reads import Read, ReadingRun
from workers.pruning.replacement import Stand, Statistics, fit, is_whole, residual_regression, stand

NAMES = ["mlp", "lenet", "resnet8", "densenet", "efficientnet", "vit", "torch_encoder", "sentences"]


def every_read(case: Subject) -> list[tuple[Read, Tensor]]:
    """All (read, value) of the subject's inputs."""
    found = []

    def listen(read: Read, value: Tensor) -> Tensor:
        found.append((read, value))
        return value

    with torch.no_grad():
        ReadingRun(case.network, case.reads, listen).run(case.x)
    return found


@pytest.mark.parametrize("ablation", ["zero", "mean", "residual"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_taken_away_is_the_definition_of_one_unit_at_a_time(name: str, ablation: str) -> None:
    case = subject(name)
    fitted = fit(*case.all, ablation)
    stands = reference.statistics(case.network, case.groups, case.reads, case.x)
    for read, value in every_read(case):
        found = fitted.removed(read, value)
        assert found.shape == read.taken(value).shape
        for place in (0, len(read.present) - 1):
            expected = reference.removed(read, value, int(read.present[place]), ablation, stands)
            torch.testing.assert_close(found[place], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("ablation", ["zero", "mean", "residual"])
@pytest.mark.parametrize("name", ["mlp", "resnet8", "convnext", "torch_encoder"])
def test_where_units_are_all_channels_the_same_is_found_in_place(name: str, ablation: str) -> None:
    case = subject(name)
    fitted = fit(*case.all, ablation)
    whole = [(read, value) for read, value in every_read(case) if is_whole(read, value)]
    assert whole
    for read, value in whole:
        expected = fitted.removed(read, value)[:, 0].movedim(0, read.axis)
        torch.testing.assert_close(fitted.removed_whole(read, value), expected)


def test_a_large_mean_costs_no_digits() -> None:
    x = torch.randn(3, 1, 2000, generator=torch.Generator().manual_seed(0))
    near, far = (statistics_of(x + mean) for mean in (0.0, 1e3))
    torch.testing.assert_close(stand(far).regression, stand(near).regression, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("ablation", ["mean", "residual"])
def test_statistics_do_not_depend_on_the_batches(ablation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = subject("resnet8")
    whole = fit(*case.all, ablation)
    monkeypatch.setattr(observation, "MAX_BATCH", 2)
    parts = fit(*case.all, ablation)
    for key, known in whole.stands.items():
        torch.testing.assert_close(parts.stands[key].mean, known.mean, rtol=1e-12, atol=1e-13)
        if ablation == "residual":
            torch.testing.assert_close(parts.stands[key].regression, known.regression, rtol=1e-8, atol=1e-9)


def test_little_memory_makes_small_batches_and_the_same_statistics() -> None:
    case = subject("lenet")
    whole, parts = fit(*case.all, "mean", memory_bytes=AMPLE), fit(*case.all, "mean", memory_bytes=1)
    assert all(torch.allclose(parts.stands[key].mean, known.mean) for key, known in whole.stands.items())


def test_some_units_get_what_they_get_among_all() -> None:
    case = subject("densenet")
    fitted = fit(*case.all, "residual")
    read, value = every_read(case)[-1]
    chosen = read.present[[1, 3]]
    torch.testing.assert_close(fitted.removed(read, value, chosen), fitted.removed(read, value)[[1, 3]])


@pytest.mark.parametrize("ablation", ["zero", "mean", "residual"])
def test_replacing_changes_the_chosen_units_and_nothing_else(ablation: str) -> None:
    case = subject("lenet")
    fitted = fit(*case.all, ablation)
    read, value = next(pair for pair in every_read(case) if pair[0].indices.shape[1] > 1)
    replaced = fitted.replaced(read, value, [2])
    mine = set(read.indices[2].tolist())
    for index in range(value.shape[read.axis]):
        same = torch.equal(replaced.select(read.axis, index), value.select(read.axis, index))
        assert same == (index not in mine)
    expected = read.taken(value)[2] - fitted.removed(read, value)[2]
    torch.testing.assert_close(read.taken(replaced)[2], expected)


def statistics_of(taken: Tensor) -> Statistics:
    units, width = taken.shape[:2]
    zeros = torch.zeros(units, width, dtype=torch.float64)
    sums = Statistics(taken[:, :, 0].clone(), zeros, torch.zeros(units * width, units * width, dtype=torch.float64))
    sums.update(taken)
    return sums


def residual_of(taken: torch.Tensor, *, centred: bool = False) -> torch.Tensor:
    known = stand(statistics_of(taken), centred=centred)
    centred = taken - known.mean.reshape(*taken.shape[:2], 1).to(taken)
    return known.regression @ centred.flatten(0, 1)


def test_a_dead_unit_gives_nothing_and_disturbs_nobody() -> None:
    x = torch.randn(4, 1, 50, dtype=torch.float64)
    dead = torch.cat([x, torch.full((1, 1, 50), 3.0, dtype=torch.float64)])
    residual = residual_of(dead)
    assert residual[4].abs().max() < 1e-12
    torch.testing.assert_close(residual[:4], residual_of(x), rtol=1e-2, atol=1e-2)  # but for a smaller ridge


def test_a_group_in_which_nothing_varies_gives_zeros() -> None:
    residual = residual_of(torch.full((3, 2, 7), 0.1, dtype=torch.float64))
    assert torch.equal(residual, torch.zeros(6, 7, dtype=torch.float64))


def test_a_unit_that_the_others_predict_has_next_to_no_residual() -> None:
    x = torch.randn(3, 1, 400, dtype=torch.float64)
    copied = torch.cat([x, x[:1]])
    residual = residual_of(copied)
    assert residual[0].norm() < 0.05 * x[0].norm()
    assert residual[1].norm() > 0.8 * x[1].norm()


def test_the_sum_that_a_layer_norm_fixes_does_not_make_its_channels_superfluous() -> None:
    x = torch.randn(6, 1, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    normed = x - x.mean(0)
    seen_through, residual = residual_of(normed), residual_of(normed, centred=True)
    assert seen_through.norm() < 0.1 * normed.norm()
    assert residual.norm() > 0.9 * normed.norm()
    torch.testing.assert_close(residual_of(x, centred=True), residual_of(x))  # which nothing relates


def test_no_read_of_a_transformers_stream_takes_its_channels_for_superfluous() -> None:
    case = subject("vit")
    fitted = fit(*case.all, "residual")
    stream = next(name for name, group in case.groups.items() if group.statistics)
    shares = [
        (fitted.removed(read, value).square().mean() / fit(*case.all, "mean").removed(read, value).square().mean())
        for read, value in every_read(case)
        if read.group == stream
    ]
    assert min(shares) > 0.05


def test_one_unit_alone_keeps_all_of_its_variation() -> None:
    x = torch.randn(1, 1, 30, dtype=torch.float64)
    torch.testing.assert_close(residual_of(x), (x - x.mean())[0])


def test_indices_of_wide_units_are_taken_for_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    case = subject("lenet")
    read, value = next(pair for pair in every_read(case) if pair[0].indices.shape[1] > 1)
    units, width = read.indices.shape
    monkeypatch.setattr(replacement, "MAX_CHANNELS", units * width - 1)
    found = fit(*case.all, "residual").removed(read, value)
    taken = read.taken(value)
    centred = taken - taken.mean(2, keepdim=True)
    covariance = torch.einsum("uwn,vwn->uv", centred, centred) / (width * taken.shape[2])
    expected = torch.einsum("uv,vwn->uwn", residual_regression(covariance, 1), centred)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_more_units_than_a_covariance_is_kept_for_are_replaced_by_their_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacement, "MAX_CHANNELS", 3)
    fitted = fit(*subject("mlp").all, "residual")
    assert all(known.regression is None for known in fitted.stands.values())


def test_zero_needs_no_pass_over_the_inputs() -> None:
    assert fit(*subject("mlp").all, "zero").stands == {}


def test_a_stand_is_cast_once_for_each_type() -> None:
    known = Stand(torch.zeros(2, 1).double(), torch.eye(2).double())
    value = torch.zeros(1)
    assert known.like(value)[0] is known.like(value)[0]
    assert known.like(value)[1].dtype == torch.float32
    assert np.isclose(float(known.like(value.double())[1].sum()), 2)
