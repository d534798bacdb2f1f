import re

import pytest
import torch
from torch import Tensor

from service.contract.reports import Environment, Interval, Latency, Report
from tests.unit.evaluation.predictions import CLASSES, labelled_logits
from tests.unit.evaluation.reports import LATENCIES, answers, present, report
from workers.evaluation import findings


def labelled(*, control: bool = True) -> tuple[dict[str, Tensor], Tensor]:
    logits, labels = answers(control=control)
    return logits, present(labels)


def texts(found: Report) -> str:
    return " ".join(finding.text for finding in found.findings)


def replaced(found: Report, path: str, **changes: object) -> Report:
    """The report with fields of one of its parts changed."""
    return found.model_copy(update={path: getattr(found, path).model_copy(update=changes)})


def latencies(*student_seconds: float, teacher_seconds: float = 0.0040) -> dict[str, tuple[Latency, ...]]:
    batches = [1, 64][: len(student_seconds)]
    teacher = tuple(Latency(batch=b, median_seconds=teacher_seconds, iqr_seconds=0.0001) for b in batches)
    student = tuple(
        Latency(batch=b, median_seconds=s, iqr_seconds=0.0001) for b, s in zip(batches, student_seconds, strict=True)
    )
    return {"teacher": teacher, "student": student}


def test_fewer_macs_that_save_no_time_are_not_hidden() -> None:
    found = present(findings.time_not_saved(report(latencies=latencies(0.0040 / 1.1))))
    assert found.text.startswith("MACs fell 4.0x, but latency only 1.1x at batch 1: ")
    assert found.numbers["macs_ratio"] == 0.25
    assert found.numbers["latency_ratio_batch_1"] == pytest.approx(1 / 1.1)


def test_a_slower_student_is_called_slower() -> None:
    text = present(findings.time_not_saved(report(latencies=latencies(0.0060, 0.0010)))).text
    assert "latency rose 1.5x at batch 1:" in text
    assert "batch 64" not in text


def test_a_student_as_slow_as_its_teacher_did_not_get_faster() -> None:
    assert "did not fall at batch 1" in present(findings.time_not_saved(report(latencies=latencies(0.0040)))).text


def test_time_saved_like_macs_needs_no_warning() -> None:
    found = report(latencies=latencies(0.0010, 0.0009))
    assert findings.time_not_saved(found) is None
    assert "measured latency fell 4.0x at batch 1 (4 ms to 1 ms), fell 4.4x at batch 64" in texts(found)


def test_a_student_that_costs_more_is_said_to() -> None:
    found = replaced(report(), "comparison", macs_ratio=2.0, parameters_ratio=1.01)
    assert present(findings.cost_saved(found)).text.startswith(
        "MACs rose 2.0x, parameters did not change, file size fell 3.8x"
    )
    assert findings.time_not_saved(found) is None


def test_a_significant_loss_of_accuracy_is_called_one() -> None:
    found = report(*answers(student_strength=1.0))
    text = present(findings.accuracy_kept(found)).text
    assert text.startswith("The student is less accurate than its teacher: student ")
    assert "McNemar's exact test p < 0.001" in text
    assert present(found.comparison.mcnemar).p_value < 0.001


def test_a_difference_that_may_be_chance_is_not_called_equality() -> None:
    logits, labels = labelled()
    student = logits["teacher"].clone()
    student[0] = 10 * torch.nn.functional.one_hot((labels[0] + 1) % CLASSES, CLASSES)
    text = present(findings.accuracy_kept(report({**logits, "student": student}, labels))).text
    assert text.startswith("No difference in accuracy between student and teacher was shown on 300 examples")
    assert "not proof that they are equal" in text


def test_a_better_student_is_called_better() -> None:
    logits, labels = labelled()
    swapped = {"teacher": labelled_logits(1, strength=1.0, labels=labels)[0], "student": logits["teacher"]}
    assert "more accurate than its teacher" in present(findings.accuracy_kept(report(swapped, labels))).text


@pytest.mark.parametrize(
    ("control_strength", "verdict"),
    [
        (2.5, "The control does as well, as far as these examples tell: distillation was not shown"),
        (0.5, "Distillation helped: the student is more accurate"),
        (6.0, "The control does better: distillation cost accuracy here"),
    ],
)
def test_the_control_decides_whether_distillation_helped(control_strength: float, verdict: str) -> None:
    logits, labels = labelled()
    control, _ = labelled_logits(9, strength=control_strength, labels=labels)
    found = present(findings.distillation_helped(report({**logits, "control": control}, labels)))
    assert found.text.startswith(verdict)
    assert "One seed each" in found.text


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.2, -0.1, "The student's probabilities are closer to the teacher's than the control's"),
        (0.1, 0.2, "The control's probabilities are closer"),
        (-0.1, 0.1, "Neither was shown to be closer"),
    ],
)
def test_who_is_closer_to_the_teacher_is_said_only_when_the_interval_says_it(
    low: float, high: float, words: str
) -> None:
    difference = Interval(value=(low + high) / 2, low=low, high=high)
    found = replaced(report(), "distillation_effect", kl_difference=difference)
    assert words in present(findings.distillation_helped(found)).text


@pytest.mark.parametrize(("factor", "word"), [(0.3, "less"), (3.0, "more")])
def test_a_change_of_certainty_is_named_by_its_direction(factor: float, word: str) -> None:
    logits, labels = labelled(control=False)
    found = present(findings.certainty(report({**logits, "student": logits["teacher"] * factor}, labels)))
    assert found.text.startswith(f"The student is {word} certain than its teacher")


def test_a_certainty_that_did_not_change_is_not_a_finding() -> None:
    logits, labels = labelled(control=False)
    assert findings.certainty(report({**logits, "student": logits["teacher"].clone()}, labels)) is None


def test_probabilities_that_are_off_are_not_to_be_believed() -> None:
    logits, labels = labelled(control=False)
    found = report({**logits, "student": logits["student"] * 20}, labels)
    assert present(found.student.calibration_error) > 0.05
    assert f"off by {found.student.calibration_error:.1%} on average" in present(findings.calibration(found)).text
    assert findings.calibration(replaced(found, "student", calibration_error=0.01)) is None


def test_a_calibration_error_that_chance_explains_is_not_held_against_the_student() -> None:
    logits, _ = answers(control=False, num_examples=60)
    probabilities = logits["student"].softmax(1)
    drawn = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(0)).squeeze(1)
    found = report(logits, drawn)
    assert present(found.student.calibration_error) > findings.UNCALIBRATED
    assert findings.calibration(found) is None


def test_inherited_errors_are_counted() -> None:
    logits, labels = labelled(control=False)
    copied = present(findings.shared_errors(report({**logits, "student": logits["teacher"].clone()}, labels)))
    errors = int((logits["teacher"].argmax(1) != labels).sum())
    assert copied.text.startswith(f"Of the teacher's {errors} errors the student repeats 100.0%")
    assert copied.numbers["teacher_errors"] == errors


def test_a_few_errors_are_no_ground_for_a_share() -> None:
    logits, labels = labelled(control=False)
    teacher = 10.0 * torch.nn.functional.one_hot(labels, CLASSES)
    teacher[:9] = teacher[:9].roll(1, dims=1)
    assert findings.shared_errors(report({**logits, "teacher": teacher}, labels)) is None


def test_the_epoch_that_was_not_chosen_is_shown() -> None:
    text = present(findings.other_candidate(report())).text
    assert text.startswith("The student is the best epoch (7)")
    assert "The last epoch (30) has" in text


def test_a_small_split_is_called_small_and_a_large_one_is_not() -> None:
    assert "only 300 examples" in present(findings.few_examples(report())).text
    assert findings.few_examples(report(*answers(num_examples=500))) is None


@pytest.mark.parametrize(("split", "use"), [("validation", "chose the student's epoch"), ("train", "was trained on")])
def test_numbers_from_a_split_that_was_seen_are_called_flattering(split: str, use: str) -> None:
    assert use in texts(report(split=split))
    assert "flatter" not in texts(report(split="test"))


def test_the_place_of_the_measurement_is_named() -> None:
    found = report(latencies=latencies(0.0040))
    other = Environment(device="NVIDIA L4", threads=8, precision="float32", versions={})
    text = present(findings.time_not_saved(found.model_copy(update={"environment": other}))).text
    assert "Measured on NVIDIA L4 with 8 thread(s)" in text


def test_every_percentage_of_a_finding_is_among_its_numbers() -> None:
    for finding in report(latencies=LATENCIES).findings:
        shown = {float(number) for number in re.findall(r"([\d.]+)%(?! interval)", finding.text)}
        known = {round(100 * abs(value), 1) for value in finding.numbers.values()}
        assert all(any(abs(number - value) <= 0.1 for value in known) for number in shown), finding
