"""What the numbers mean, in plain words: each finding is a sentence with the numbers it rests on.

A finding never says more than its numbers do. Where a difference may be chance it says so, and does not say that
there is none. What is unwelcome (fewer multiplications but no shorter time, a control that does as well) is said
like everything else. A finding that does not apply is None.
"""

from collections.abc import Callable

from service.contract.reports import Finding, Interval, Latency, McNemar, Measures, Report
from workers.evaluation.calibration import error_by_chance

SIGNIFICANT = 0.05
#: Ratios nearer to 1 than this are not worth a word.
NOTICEABLE = 1.05
#: How much farther MACs must have fallen than latency before it is said.
SHORTFALL = 1.25
#: Expected calibration error from which the outputs should not be read as probabilities.
UNCALIBRATED = 0.05
#: And how many times what a calibrated model would show on so few examples.
ABOVE_CHANCE = 1.5
#: Fewer examples than this leave an accuracy uncertain by several points.
FEW_EXAMPLES = 500
#: Fewer errors of the teacher than this say nothing about which errors the student took over.
FEW_ERRORS = 10


def find(report: Report) -> tuple[Finding, ...]:
    """All that there is to say about a report, the most important first."""
    return tuple(finding for rule in RULES if (finding := rule(report)) is not None)


def accuracy_kept(report: Report) -> Finding | None:
    """Whether the student is less, or more, often right than its teacher."""
    comparison, teacher, student = report.comparison, report.teacher.accuracy, report.student.accuracy
    difference, test = comparison.accuracy_difference, comparison.mcnemar
    if teacher is None or student is None or difference is None or test is None:
        return None
    numbers = {
        "teacher_accuracy": teacher.value,
        "student_accuracy": student.value,
        **_ends("accuracy_difference", difference),
        "p_value": test.p_value,
    }
    rates = f"student {_percent(student.value)}, teacher {_percent(teacher.value)}"
    detail = f"a difference of {_points(difference)}, McNemar's exact test p {_p(test.p_value)}"
    if test.p_value < SIGNIFICANT:
        verdict = "less" if difference.value < 0 else "more"
        return Finding(text=f"The student is {verdict} accurate than its teacher: {rates}, {detail}.", numbers=numbers)
    text = (
        f"No difference in accuracy between student and teacher was shown on {report.examples} examples: {rates}, "
        f"{detail}. That is not proof that they are equal: the interval says what cannot be excluded."
    )
    return Finding(text=text, numbers=numbers)


def distillation_helped(report: Report) -> Finding | None:
    """Whether the student does better than the same network trained on the labels alone."""
    effect, control, student = report.distillation_effect, report.control, report.student
    if effect is None or control is None or control.accuracy is None or student.accuracy is None:
        return None
    if effect.accuracy_difference is None or effect.mcnemar is None:
        return None
    numbers = {
        "student_accuracy": student.accuracy.value,
        "control_accuracy": control.accuracy.value,
        **_ends("accuracy_difference", effect.accuracy_difference),
        "p_value": effect.mcnemar.p_value,
        **_ends("kl_difference", effect.kl_difference),
    }
    rates = f"student {_percent(student.accuracy.value)}, control {_percent(control.accuracy.value)}"
    test = (
        f"a difference of {_points(effect.accuracy_difference)}, McNemar's exact test p {_p(effect.mcnemar.p_value)}"
    )
    text = (
        f"{_verdict_on_control(effect.accuracy_difference, effect.mcnemar)}: {rates}, {test}. "
        f"{_closeness(effect.kl_difference)} One seed each: another seed may turn out otherwise."
    )
    return Finding(text=text, numbers=numbers)


def _verdict_on_control(difference: Interval, test: McNemar) -> str:
    if test.p_value >= SIGNIFICANT:
        return "The control does as well, as far as these examples tell: distillation was not shown to help accuracy here"
    if difference.value > 0:
        return "Distillation helped: the student is more accurate than the same network trained on the labels alone"
    return "The control does better: distillation cost accuracy here"


def _closeness(kl: Interval) -> str:
    amount = f"KL(teacher‖model) differs by {kl.value:+.3g} nats [{kl.low:+.3g}, {kl.high:+.3g}]"
    if kl.high < 0:
        return f"The student's probabilities are closer to the teacher's than the control's ({amount})."
    if kl.low > 0:
        return f"The control's probabilities are closer to the teacher's than the student's ({amount})."
    return f"Neither was shown to be closer to the teacher's probabilities ({amount})."


def cost_saved(report: Report) -> Finding | None:
    """What the student saves, and whether the saved multiplications are saved time."""
    times = tuple(zip(report.teacher.latency, report.student.latency, strict=True))
    comparison = report.comparison
    numbers = {"macs_ratio": comparison.macs_ratio, "parameters_ratio": comparison.parameters_ratio}
    numbers["bytes_ratio"] = report.student.bytes / report.teacher.bytes
    for teacher, student in times:
        numbers[f"latency_ratio_batch_{teacher.batch}"] = student.median_seconds / teacher.median_seconds
    measured = ", ".join(_latency(teacher, student) for teacher, student in times)
    text = (
        f"MACs {_change(comparison.macs_ratio)}, parameters {_change(comparison.parameters_ratio)}, "
        f"file size {_change(numbers['bytes_ratio'])}; measured latency {measured}."
    )
    return Finding(text=text, numbers=numbers)


def time_not_saved(report: Report) -> Finding | None:
    """That MACs fell farther than latency, where they did."""
    comparison = report.comparison
    lagging = [
        (teacher, student)
        for teacher, student in zip(report.teacher.latency, report.student.latency, strict=True)
        if comparison.macs_ratio * NOTICEABLE < 1
        and student.median_seconds / teacher.median_seconds > comparison.macs_ratio * SHORTFALL
    ]
    if not lagging:
        return None
    numbers = {"macs_ratio": comparison.macs_ratio}
    for teacher, student in lagging:
        numbers[f"latency_ratio_batch_{teacher.batch}"] = student.median_seconds / teacher.median_seconds
    text = (
        f"MACs {_change(comparison.macs_ratio)}, but latency {', '.join(_shortfall(*pair) for pair in lagging)}: "
        "fewer multiplications did not save as much time. MACs leave out what each layer costs besides them: "
        f"memory traffic and the call itself. Measured on {report.environment.device} with "
        f"{report.environment.threads} thread(s); other hardware may differ."
    )
    return Finding(text=text, numbers=numbers)


def certainty(report: Report) -> Finding | None:
    """Whether the student's predictions are surer than its teacher's."""
    difference = report.comparison.predictive_entropy_difference
    if difference is None or difference.low <= 0 <= difference.high:
        return None
    numbers = {
        "teacher_predictive_entropy": report.teacher.predictive_entropy,
        "student_predictive_entropy": report.student.predictive_entropy,
        **_ends("predictive_entropy_difference", difference),
    }
    text = (
        f"The student is {'less' if difference.value > 0 else 'more'} certain than its teacher: mean entropy of its "
        f"predictions {report.student.predictive_entropy:.3g} nats, the teacher's "
        f"{report.teacher.predictive_entropy:.3g} (difference [{difference.low:+.3g}, {difference.high:+.3g}])."
    )
    return Finding(text=text, numbers=numbers)


def calibration(report: Report) -> Finding | None:
    """That the student's probabilities, and its claimed information, should not be taken at their word."""
    student = report.student
    if student.calibration_error is None or student.label_information is None:
        return None
    by_chance = error_by_chance(student.reliability)
    if student.calibration_error < max(UNCALIBRATED, ABOVE_CHANCE * by_chance):
        return None
    numbers = {
        "calibration_error": student.calibration_error,
        "calibration_error_by_chance": by_chance,
        "claimed_information": student.claimed_information,
        "label_information": student.label_information,
    }
    if report.teacher.calibration_error is not None:
        numbers["teacher_calibration_error"] = report.teacher.calibration_error
    text = (
        f"The student's probabilities are off by {student.calibration_error:.1%} on average (expected calibration "
        f"error; its teacher's {_optional_percent(report.teacher)}; {by_chance:.1%} would be chance), so do not take them, or its claimed information "
        f"({student.claimed_information:.3g} nats), at their word: its most likely class tells "
        f"{student.label_information:.3g} nats about the label."
    )
    return Finding(text=text, numbers=numbers)


def shared_errors(report: Report) -> Finding | None:
    """How many of the teacher's errors the student took over."""
    shared, accuracy = report.comparison.agreement_on_teacher_errors, report.teacher.accuracy
    if shared is None or accuracy is None:
        return None
    errors = round((1 - accuracy.value) * report.examples)
    if errors < FEW_ERRORS:
        return None
    text = (
        f"Of the teacher's {errors} errors the student repeats {_percent(shared.value)} "
        f"[{_percent(shared.low)}, {_percent(shared.high)}] with the same wrong class; over all examples they agree "
        f"on {_percent(report.comparison.agreement.value)}."
    )
    numbers = {
        "teacher_errors": float(errors),
        **_ends("agreement_on_teacher_errors", shared),
        "agreement": report.comparison.agreement.value,
    }
    return Finding(text=text, numbers=numbers)


def other_candidate(report: Report) -> Finding | None:
    """How the epoch that was not chosen does on the same split."""
    selection, student = report.selection, report.student
    if selection.other_accuracy is None or selection.other_epoch is None or student.accuracy is None:
        return None
    if selection.other_epoch == selection.epoch:
        return None
    text = (
        f"The student is the {selection.selected} epoch ({selection.epoch}) with an accuracy of "
        f"{_percent(student.accuracy.value)}. The {selection.other} epoch ({selection.other_epoch}) has "
        f"{_percent(selection.other_accuracy.value)}."
    )
    numbers = {
        "epoch": float(selection.epoch),
        "accuracy": student.accuracy.value,
        "other_epoch": float(selection.other_epoch),
        "other_accuracy": selection.other_accuracy.value,
    }
    return Finding(text=text, numbers=numbers)


def not_held_out(report: Report) -> Finding | None:
    """That the numbers come from examples that training or selection has seen."""
    if report.split == "test":
        return None
    use = "chose the student's epoch" if report.split == "validation" else "the student was trained on"
    text = (
        f"There is no test split: these numbers are from the {report.split} split, which {use}, and flatter the "
        "student. Register the dataset with a test split for an honest comparison."
    )
    return Finding(text=text, numbers={"examples": float(report.examples)})


def few_examples(report: Report) -> Finding | None:
    """That the split is too small for fine differences."""
    if report.examples >= FEW_EXAMPLES:
        return None
    numbers = {"examples": float(report.examples)}
    text = f"The {report.split} split has only {report.examples} examples"
    if (accuracy := report.student.accuracy) is not None:
        width = accuracy.high - accuracy.low
        numbers["accuracy_interval_width"] = width
        text += f": the 95% interval of the student's accuracy is {width * 100:.1f} points wide"
    return Finding(text=f"{text}. Read small differences as noise.", numbers=numbers)


def no_labels(report: Report) -> Finding | None:
    """That nothing could be said about being right."""
    if report.student.accuracy is not None:
        return None
    agreement = report.comparison.agreement
    text = (
        f"The {report.split} split has no labels: whether the models are right was not measured, only that they agree "
        f"on {_percent(agreement.value)} [{_percent(agreement.low)}, {_percent(agreement.high)}] of "
        f"{report.examples} examples."
    )
    return Finding(text=text, numbers={**_ends("agreement", agreement), "examples": float(report.examples)})


RULES: tuple[Callable[[Report], Finding | None], ...] = (
    accuracy_kept,
    no_labels,
    not_held_out,
    distillation_helped,
    cost_saved,
    time_not_saved,
    certainty,
    calibration,
    shared_errors,
    other_candidate,
    few_examples,
)


def _ends(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _optional_percent(measures: Measures) -> str:
    return "unknown" if measures.calibration_error is None else _percent(measures.calibration_error)


def _points(difference: Interval) -> str:
    value, low, high = (100 * end for end in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _change(ratio: float) -> str:
    """0.25 as "fell 4.0x", 2 as "rose 2.0x"."""
    if ratio * NOTICEABLE < 1:
        return f"fell {1 / ratio:.1f}x"
    return f"rose {ratio:.1f}x" if ratio > NOTICEABLE else "did not change"


def _latency(teacher: Latency, student: Latency) -> str:
    times = f"{teacher.median_seconds * 1000:.3g} ms to {student.median_seconds * 1000:.3g} ms"
    return f"{_change(student.median_seconds / teacher.median_seconds)} at batch {teacher.batch} ({times})"


def _shortfall(teacher: Latency, student: Latency) -> str:
    speedup = teacher.median_seconds / student.median_seconds
    if speedup < 1 / NOTICEABLE:
        return f"rose {1 / speedup:.1f}x at batch {teacher.batch}"
    if speedup <= NOTICEABLE:
        return f"did not fall at batch {teacher.batch}"
    return f"only {speedup:.1f}x at batch {teacher.batch}"
