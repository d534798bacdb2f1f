"""What units say: against definitions, on networks of every kind, whatever the batches."""

import dataclasses
from math import comb, log

import numpy as np
import pytest
import torch

from service.contract.errors import Invalid
from tests.reference import analysis as reference
from tests.reference.criteria import bins_of, corrected_information, pooled_activations
from tests.reference.information import miller_madow_entropy
from tests.unit.pruning.subjects import AMPLE, SILENT, Subject, judged, subject
from workers.analysis.activity import MOST_PAIRS, Activity, activities, drawn_pairs
from workers.pruning import observation


def measured(case: Subject, *, bins: int = 4, memory_bytes: int = AMPLE, seed: int = 0) -> dict[str, Activity]:
    return activities(*case.all, bins=bins, seed=seed, memory_bytes=memory_bytes, journal=SILENT)


def assert_alike(found: Activity, expected: Activity) -> None:
    one, other = dataclasses.asdict(found), dataclasses.asdict(expected)
    assert one.pop("reader") == other.pop("reader")
    for name, value in other.items():
        if value is None:
            assert one[name] is None
        else:
            torch.testing.assert_close(one[name], value, equal_nan=True, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["lenet", "densenet", "torch_encoder", "sentences"])
def test_every_measure_follows_its_definition(name: str) -> None:
    case = subject(name, 12)
    found = measured(case)
    assert case.labels is not None
    labels = case.labels.numpy()
    assert set(found) == {group for group in case.groups if case.reads[group]}
    for group, activity in found.items():
        read = case.reads[group][0]
        values = pooled_activations(case.network, read, case.x).double().numpy()
        codes = np.stack([bins_of(column, 4) for column in values.T])
        units = [0, len(codes) - 1]
        for place in units:
            unit = int(read.present[place])
            assert float(activity.entropy[unit]) == pytest.approx(miller_madow_entropy(codes[place].tolist()), abs=1e-9)
            assert activity.label_information is not None
            expected = corrected_information(codes[place], labels)
            assert float(activity.label_information[unit]) == pytest.approx(expected, abs=1e-9)
        chance = np.mean([reference.corrected_by_chance(code, labels) for code in codes])
        assert activity.label_chance == pytest.approx(chance, abs=1e-9)


@pytest.mark.parametrize("name", ["lenet", "sentences"])
def test_redundancy_is_a_regression_over_examples_and_positions(name: str) -> None:
    case = subject(name, 40)
    checked = 0
    for group, activity in measured(case).items():
        rows = reference.rows_of_units(case.network, case.reads[group][0], case.x)
        living = rows.std(0) > 1e-9
        assert activity.rows == len(rows)
        if activity.explained is None:
            assert len(rows) <= living.sum()
            continue
        for unit in np.flatnonzero(living)[:3]:
            expected = reference.explained(rows[:, living], int(np.flatnonzero(np.flatnonzero(living) == unit)[0]))
            assert float(activity.explained[unit]) == pytest.approx(expected, abs=1e-5)
            checked += 1
    assert checked >= 6


def test_pairs_share_what_their_bins_share() -> None:
    case = subject("lenet", 30)
    for group, activity in measured(case, bins=5).items():
        values = pooled_activations(case.network, case.reads[group][0], case.x).double().numpy()
        assert activity.pairs is not None
        assert activity.pairs.bins == 5
        for place in (0, len(activity.pairs.chosen) - 1):
            one, other = (bins_of(values[:, unit], 5) for unit in activity.pairs.chosen[place].tolist())
            assert float(activity.pairs.information[place]) == pytest.approx(reference.information(one, other))
            chance = reference.information_by_chance(one, other)
            assert float(activity.pairs.chance[place]) == pytest.approx(chance, abs=1e-12)


def test_nothing_depends_on_the_batches_nor_on_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    case = subject("densenet", 12)
    whole = measured(case)
    monkeypatch.setattr(observation, "MAX_BATCH", 5)
    for parts in (measured(case), measured(case, memory_bytes=2000)):
        assert list(parts) == list(whole)
        for name, activity in whole.items():
            assert_alike(parts[name], activity)


def test_units_that_never_change_are_dead_and_say_nothing() -> None:
    case = subject("lenet", 6)
    same = judged(case.network, np.repeat(case.calibration.split.x[:1], 20, 0), np.arange(20) % 3)
    for activity in measured(same).values():
        assert bool((activity.entropy == 0).all())
        assert bool(activity.dead.all())
        assert activity.explained is None
        assert activity.pairs is None


def test_without_labels_nothing_is_said_of_them() -> None:
    for activity in measured(subject("lenet", 8, labelled=False)).values():
        assert activity.label_information is None
        assert activity.label_chance is None
        assert activity.explained is None or float(activity.explained[activity.explained.isfinite()].max()) <= 1


def test_one_input_is_too_few() -> None:
    with pytest.raises(Invalid, match="at least 2"):
        measured(subject("lenet", 1))


def test_what_is_found_survives_a_checkpoint() -> None:
    for activity in measured(subject("lenet", 8)).values():
        again = Activity.from_plain(dataclasses.asdict(activity))
        assert_alike(again, activity)


@pytest.mark.parametrize("units", [2, 5, 11, 12, 300])
def test_pairs_are_all_or_a_drawn_sample_without_repetition(units: int) -> None:
    chosen = drawn_pairs(torch.arange(units) * 3, [7])
    assert len(chosen) == min(comb(units, 2), MOST_PAIRS)
    assert len({tuple(pair) for pair in chosen.tolist()}) == len(chosen)
    assert bool((chosen[:, 0] < chosen[:, 1]).all())
    assert bool((chosen % 3 == 0).all())
    torch.testing.assert_close(chosen, drawn_pairs(torch.arange(units) * 3, [7]))


def test_chance_is_what_unrelated_units_show_and_relation_is_above_it() -> None:
    case = subject("lenet", 400)
    found = measured(case, bins=16)
    for activity in found.values():
        assert activity.label_chance is not None
        assert activity.label_information is not None
        # Labels were drawn: units know nothing of them, and the estimate says about what chance says.
        assert float(activity.label_information.nanmean()) == pytest.approx(activity.label_chance, abs=0.03)
        assert activity.pairs is not None
        assert 0 < float(activity.pairs.chance.mean()) < 0.1
        assert float(activity.entropy.max()) <= log(16) + 0.05
