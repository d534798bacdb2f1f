import pytest

from service.contract.reports import Report
from tests.unit.evaluation.reports import ENVIRONMENT, answers, present, report
from workers.evaluation.quality import accuracy, negative_log_likelihood


def test_a_report_survives_json_unchanged() -> None:
    found = report()
    assert Report.model_validate_json(found.model_dump_json()) == found


def test_every_model_has_its_own_column() -> None:
    logits, labels = answers()
    found = report(logits, labels)
    for role in ("teacher", "student", "control"):
        measures = getattr(found, role)
        assert measures.accuracy == accuracy(logits[role], present(labels))
        assert measures.nll == negative_log_likelihood(logits[role], present(labels))
        assert sum(bin_.examples for bin_ in measures.reliability) == found.examples == 300
    assert (found.teacher.macs, found.student.macs, found.student.bytes) == (400_000, 100_000, 4_300)
    assert found.environment == ENVIRONMENT


def test_ratios_are_the_students_over_the_teachers() -> None:
    comparison = report().comparison
    assert (comparison.macs_ratio, comparison.parameters_ratio) == (0.25, 0.25)
    assert comparison.latency_ratio == pytest.approx(0.0020 / 0.0022)


def test_the_control_is_compared_with_the_teacher_and_the_student_with_the_control() -> None:
    logits, labels = answers()
    found = report(logits, labels)
    swapped = report({**logits, "student": logits["control"], "control": logits["student"]}, labels)
    assert found.control_comparison == swapped.comparison
    accuracies = present(found.student.accuracy).value - present(present(found.control).accuracy).value
    difference = present(present(found.distillation_effect).accuracy_difference)
    assert difference.value == pytest.approx(accuracies)


def test_without_a_control_nothing_is_said_of_one() -> None:
    found = report(*answers(control=False))
    assert [found.control, found.control_comparison, found.distillation_effect] == [None] * 3
    assert not any("control" in finding.text for finding in found.findings)


def test_the_other_candidate_is_judged_on_the_same_split() -> None:
    logits, labels = answers()
    selection = report(logits, labels).selection
    assert selection.other_accuracy == accuracy(logits["other"], present(labels))
    assert selection.other_nll == negative_log_likelihood(logits["other"], present(labels))
    assert report(*answers(other=False)).selection.other_accuracy is None


def test_without_labels_the_report_holds_what_needs_none() -> None:
    found = report(*answers(labelled=False))
    assert [found.student.accuracy, found.student.nll, found.student.calibration_error] == [None] * 3
    assert found.student.reliability == ()
    assert found.comparison.kl_teacher_student.value > 0
    assert present(found.distillation_effect).kl_difference is not None
    assert "has no labels" in " ".join(finding.text for finding in found.findings)
    assert Report.model_validate_json(found.model_dump_json()) == found
