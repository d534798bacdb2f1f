"""The report of a finished job, put together from logits, labels, costs and measured times.

Everything in it is computed here from what was measured; nothing is measured here. Models go by their role:
"teacher", "student", "control" (the same student trained on the labels alone), and "other" (the student's epoch
that was not chosen: the last if the best was, and the other way round). Whatever else has logits is a contender, of
the same cost as the student.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from service.contract.reports import (
    Contender,
    Environment,
    Interval,
    Latency,
    Measures,
    Pruning,
    Report,
    Selection,
    StageOutcome,
)
from workers.evaluation.by_class import by_class
from workers.evaluation.by_input import by_input
from workers.evaluation.calibration import calibration_error, reliability
from workers.evaluation.comparison import Ratios, advantage_over_each, compare_each
from workers.evaluation.cost import Cost
from workers.evaluation.findings import find
from workers.evaluation.quality import accuracy, label_information, negative_log_likelihood, output_information
from workers.evaluation.uncertainty import measure_intervals


def build_report(
    *,
    job_id: str,
    split: str,
    logits: Mapping[str, Tensor],
    labels: Tensor | None,
    costs: Mapping[str, Cost],
    bytes_on_disk: Mapping[str, int],
    latencies: Mapping[str, tuple[Latency, ...]],
    selection: Selection | None,
    environment: Environment,
    stages: Sequence[StageOutcome] = (),
    pruning: Pruning | None = None,
    classes: Sequence[str] | None = None,
) -> Report:
    """Compare the models by their logits (n, K) on one split; labels (n,) int64, or None.

    Costs, bytes and latencies are needed for all that have logits but "other". `classes` are the dataset's names of
    its classes, where it has any.
    """
    roles = [role for role in logits if role != "other"]
    intervals = measure_intervals({role: logits[role] for role in roles}, labels)
    measures = {
        role: measure(logits[role], labels, costs[role], bytes_on_disk[role], latencies[role], intervals[role])
        for role in roles
    }
    teacher, student = logits["teacher"], logits["student"]
    compared = {role: logits[role] for role in roles if role != "teacher"}
    costs_saved = {role: ratios(measures[role], measures["teacher"]) for role in compared}
    comparisons = compare_each(teacher, compared, labels, ratios=costs_saved)
    others = {role: logits[role] for role in compared if role != "student"}
    advantages = advantage_over_each(teacher, student, others, labels)
    report = Report(
        job=job_id,
        split=split,
        examples=len(teacher),
        teacher=measures["teacher"],
        student=measures["student"],
        control=measures.get("control"),
        comparison=comparisons["student"],
        control_comparison=comparisons.get("control"),
        distillation_effect=advantages.get("control"),
        by_class=None if labels is None else by_class(teacher, student, labels, classes),
        by_input=by_input(teacher, student, labels, classes),
        controls={
            role: Contender(measures=measures[role], comparison=comparisons[role], advantage=advantages[role])
            for role in roles
            if role not in ("teacher", "student", "control")
        },
        pruning=pruning,
        selection=None if selection is None else with_other(selection, logits.get("other"), labels),
        environment=environment,
        stages=tuple(stages),
    )
    return report.model_copy(update={"findings": find(report)})


def measure(
    logits: Tensor,
    labels: Tensor | None,
    cost: Cost,
    bytes_on_disk: int,
    latency: tuple[Latency, ...],
    intervals: Mapping[str, Interval],
) -> Measures:
    """One model's column of the report, from its logits (n, K)."""
    return Measures(
        **output_information(logits),
        **({} if labels is None else label_measures(logits, labels)),
        parameters=cost.parameters,
        macs=cost.macs,
        bytes=bytes_on_disk,
        latency=latency,
        intervals=dict(intervals),
    )


def label_measures(logits: Tensor, labels: Tensor) -> dict[str, object]:
    """The part of a model's measures that needs labels."""
    bins = reliability(logits, labels)
    return {
        "accuracy": accuracy(logits, labels),
        "nll": negative_log_likelihood(logits, labels),
        "label_information": label_information(logits, labels),
        "calibration_error": calibration_error(bins),
        "reliability": bins,
    }


def ratios(student: Measures, teacher: Measures) -> Ratios:
    """The student's cost over the teacher's; latency at the first batch size that both were measured at."""
    return Ratios(
        latency=student.latency[0].median_seconds / teacher.latency[0].median_seconds,
        macs=student.macs / teacher.macs,
        parameters=student.parameters / teacher.parameters,
    )


def with_other(selection: Selection, logits: Tensor | None, labels: Tensor | None) -> Selection:
    """The selection, with how the other candidate does on this split."""
    if logits is None or labels is None:
        return selection
    measured = {"other_accuracy": accuracy(logits, labels), "other_nll": negative_log_likelihood(logits, labels)}
    return selection.model_copy(update=measured)
