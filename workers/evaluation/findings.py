"""What the numbers mean, in plain words: each finding is a sentence with the numbers it rests on.

A finding never says more than its numbers do. Where a difference may be chance it says so, and does not say that
there is none. What is unwelcome (fewer multiplications but no shorter time, a control that does as well) is said
like everything else. A finding that does not apply is None.
"""

from collections.abc import Callable

from service.contract.reports import Finding, Interval, McNemar, Report
from workers.evaluation.calibration import error_by_chance
from workers.evaluation.findings_pruning import pruning_findings
from workers.evaluation.phrases import (
    NOTICEABLE,
    SIGNIFICANT,
    change,
    ends,
    latency_change,
    p_value,
    percent,
    percent_or_unknown,
    points,
    shortfall,
)

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
#: What a split that is no test split was used for, in a job that prunes (True) or only trains.
USES = {
    ("validation", False): "chose the student's epoch",
    ("validation", True): "judged every step of the pruning",
    ("train", False): "the student was trained on",
    ("train", True): "the units were judged on",
}


def find(report: Report) -> tuple[Finding, ...]:
    """All that there is to say about a report, the most important first."""
    first = (finding for rule in FIRST_RULES if (finding := rule(report)) is not None)
    then = (finding for rule in RULES if (finding := rule(report)) is not None)
    return (*first, *pruning_findings(report), *then)


def accuracy_kept(report: Report) -> Finding | None:
    """Whether the student is less, or more, often right than its teacher."""
    comparison, teacher, student = report.comparison, report.teacher.accuracy, report.student.accuracy
    difference, test = comparison.accuracy_difference, comparison.mcnemar
    if teacher is None or student is None or difference is None or test is None:
        return None
    numbers = {
        "teacher_accuracy": teacher.value,
        "student_accuracy": student.value,
        **ends("accuracy_difference", difference),
        "p_value": test.p_value,
    }
    rates = f"student {percent(student.value)}, teacher {percent(teacher.value)}"
    detail = f"a difference of {points(difference)}, McNemar's exact test p {p_value(test.p_value)}"
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
        **ends("accuracy_difference", effect.accuracy_difference),
        "p_value": effect.mcnemar.p_value,
        **ends("kl_difference", effect.kl_difference),
    }
    rates = f"student {percent(student.accuracy.value)}, control {percent(control.accuracy.value)}"
    p = p_value(effect.mcnemar.p_value)
    test = f"a difference of {points(effect.accuracy_difference)}, McNemar's exact test p {p}"
    text = (
        f"{_verdict_on_control(effect.accuracy_difference, effect.mcnemar)}: {rates}, {test}. "
        f"{_closeness(effect.kl_difference)} One seed each: another seed may turn out otherwise."
    )
    return Finding(text=text, numbers=numbers)


def _verdict_on_control(difference: Interval, test: McNemar) -> str:
    if test.p_value >= SIGNIFICANT:
        return (
            "The control does as well, as far as these examples tell: distillation was not shown to help accuracy here"
        )
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
    measured = ", ".join(latency_change(teacher, student) for teacher, student in times)
    text = (
        f"MACs {change(comparison.macs_ratio)}, parameters {change(comparison.parameters_ratio)}, "
        f"file size {change(numbers['bytes_ratio'])}; measured latency {measured}."
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
        f"MACs {change(comparison.macs_ratio)}, but latency {', '.join(shortfall(*pair) for pair in lagging)}: "
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
        **ends("predictive_entropy_difference", difference),
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
        f"The student's probabilities are off by {percent(student.calibration_error)} on average (expected calibration "
        f"error; its teacher's {percent_or_unknown(report.teacher.calibration_error)}; {percent(by_chance)} would be "
        f"chance), so do not take them, or its claimed information ({student.claimed_information:.3g} nats), at their "
        f"word: its most likely class tells {student.label_information:.3g} nats about the label."
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
        f"Of the teacher's {errors} errors the student repeats {percent(shared.value)} "
        f"[{percent(shared.low)}, {percent(shared.high)}] with the same wrong class; over all examples they agree "
        f"on {percent(report.comparison.agreement.value)}."
    )
    numbers = {
        "teacher_errors": float(errors),
        **ends("agreement_on_teacher_errors", shared),
        "agreement": report.comparison.agreement.value,
    }
    return Finding(text=text, numbers=numbers)


def other_candidate(report: Report) -> Finding | None:
    """How the epoch that was not chosen does on the same split."""
    selection, student = report.selection, report.student
    if (
        selection is None
        or selection.other_accuracy is None
        or selection.other_epoch is None
        or student.accuracy is None
    ):
        return None
    if selection.other_epoch == selection.epoch:
        return None
    text = (
        f"The student is the {selection.selected} epoch ({selection.epoch}) with an accuracy of "
        f"{percent(student.accuracy.value)}. The {selection.other} epoch ({selection.other_epoch}) has "
        f"{percent(selection.other_accuracy.value)}."
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
    use = USES[report.split, report.pruning is not None]
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
        f"on {percent(agreement.value)} [{percent(agreement.low)}, {percent(agreement.high)}] of "
        f"{report.examples} examples."
    )
    return Finding(text=text, numbers={**ends("agreement", agreement), "examples": float(report.examples)})


Rule = Callable[[Report], Finding | None]
FIRST_RULES: tuple[Rule, ...] = (
    accuracy_kept,
    no_labels,
    not_held_out,
    distillation_helped,
    cost_saved,
    time_not_saved,
)
RULES: tuple[Rule, ...] = (
    certainty,
    calibration,
    shared_errors,
    other_candidate,
    few_examples,
)
