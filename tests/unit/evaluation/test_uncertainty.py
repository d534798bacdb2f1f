import pytest
import torch

from tests.reference import evaluation as reference
from tests.unit.evaluation.predictions import labelled_logits
from tests.unit.evaluation.reports import answers, present, report
from workers.evaluation.calibration import bins_of
from workers.evaluation.uncertainty import MOST_OUTPUTS, measure_intervals
from workers.information.bootstrap import Resampling, resample_weights

FEW = Resampling(num_resamples=40, seed=5)
TEACHER, LABELS = labelled_logits(0, 30)


def drawn() -> list[list[int]]:
    """The resamples that the intervals were made from, as lists of example numbers."""
    weights = torch.cat(list(resample_weights(30, FEW))).long().tolist()
    return [[row for row, times in enumerate(counts) for _ in range(times)] for counts in weights]


def marginal_entropy(rows: list[int]) -> float:
    return reference.entropy(reference.mean_prediction([TEACHER[row].tolist() for row in rows]))


def predictive_entropy(rows: list[int]) -> float:
    return reference.predictive_entropy([TEACHER[row].tolist() for row in rows])


STATISTICS = {
    "predictive_entropy": predictive_entropy,
    "marginal_entropy": marginal_entropy,
    "claimed_information": lambda rows: marginal_entropy(rows) - predictive_entropy(rows),
    "nll": lambda rows: reference.negative_log_likelihood(
        [TEACHER[row].tolist() for row in rows], [int(LABELS[row]) for row in rows]
    ),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_an_interval_is_what_measuring_each_resample_gives(name: str) -> None:
    found = measure_intervals({"teacher": TEACHER}, LABELS, resampling=FEW)["teacher"][name]
    statistic = STATISTICS[name]
    low, high = reference.paired_percentile_interval(statistic, drawn())
    assert (found.value, found.low, found.high) == pytest.approx((statistic(list(range(30))), low, high))


def test_the_calibration_errors_interval_has_the_spread_of_the_resamples_with_the_bins_as_they_are() -> None:
    found = measure_intervals({"teacher": TEACHER}, LABELS, resampling=FEW)["teacher"]["calibration_error"]
    probabilities, bins = TEACHER.double().softmax(1), bins_of(TEACHER).tolist()
    gaps = [
        float(int(row.argmax()) == label) - float(row.max())
        for row, label in zip(probabilities, LABELS.tolist(), strict=True)
    ]

    def error(rows: list[int]) -> float:
        return sum(abs(sum(gaps[row] for row in rows if bins[row] == b)) for b in set(bins)) / len(rows)

    errors = torch.tensor([error(rows) for rows in drawn()], dtype=torch.float64)
    value = error(list(range(30)))
    reach = 1.959964 * float(errors.std(correction=0))
    assert (found.value, found.high) == pytest.approx((value, value + reach), rel=1e-6)
    assert found.low == pytest.approx(max(0.0, value - reach), rel=1e-6)


def test_every_measure_lies_in_its_interval_and_is_the_reports() -> None:
    found = report()
    for measures in (found.teacher, found.student, present(found.control)):
        assert len(measures.intervals) == 6
        for name, interval in measures.intervals.items():
            assert interval.value == pytest.approx(getattr(measures, name), abs=1e-9)
            assert interval.low <= interval.high
        assert measures.intervals["nll"].low < present(measures.nll) < measures.intervals["nll"].high


def test_without_labels_there_are_the_measures_of_the_outputs_alone() -> None:
    found = report(*answers(labelled=False)).teacher.intervals
    assert set(found) == {"predictive_entropy", "marginal_entropy", "claimed_information"}


def test_the_mean_output_of_very_many_classes_is_left_out() -> None:
    logits = torch.randn(20, MOST_OUTPUTS + 1, generator=torch.Generator().manual_seed(0))
    assert set(measure_intervals({"teacher": logits}, None, resampling=FEW)["teacher"]) == {"predictive_entropy"}


def test_models_share_their_resamples() -> None:
    alone = measure_intervals({"student": TEACHER}, LABELS, resampling=FEW)["student"]
    beside = measure_intervals({"teacher": TEACHER.flip(1), "student": TEACHER}, LABELS, resampling=FEW)["student"]
    for name, interval in alone.items():
        assert (beside[name].low, beside[name].high) == pytest.approx((interval.low, interval.high))
