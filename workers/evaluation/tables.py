"""The tables of a report as rows of text: the same in the model card and in the page.

Every function gives a header and rows; what no model has a number for is left out. Information is in nats.
"""

from collections.abc import Callable, Sequence

from service.contract.reports import (
    ByClass,
    Comparison,
    FileVerification,
    Interval,
    Measures,
    Prediction,
    Pruning,
    Report,
    StageOutcome,
)
from workers.evaluation.roles import comparisons_of, models_of

Rows = list[list[str]]
Table = tuple[list[str], Rows]


def measures(report: Report) -> Table:
    """A column for each model: what it measures, how it compares with the teacher, what it costs."""
    columns, comparisons = models_of(report), comparisons_of(report)
    rows = [[label, *(cell(model) for model in columns.values())] for label, cell in MEASURED.items()]
    for index, entry in enumerate(report.teacher.latency):
        rows.append([f"latency, batch {entry.batch}", *(latency(model, index) for model in columns.values())])
    for label, get in COMPARED.items():
        compared = [comparisons.get(name) for name in columns]
        rows.append([label, *("" if comparison is None else get(comparison) for comparison in compared)])
    return ["", *columns], [row for row in rows if any(row[1:])]


def percent(share: float | Interval | None) -> str:
    """A share, with its interval where it has one."""
    if not isinstance(share, Interval):
        return "" if share is None else f"{share:.1%}"
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"


def nats(value: float | Interval | None) -> str:
    """An amount of information, with its interval where it has one."""
    if isinstance(value, Interval):
        return f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"
    return "" if value is None else f"{value:.4f}"


def latency(model: Measures, index: int) -> str:
    """Median and interquartile range, in milliseconds."""
    if index >= len(model.latency):
        return ""
    entry = model.latency[index]
    return f"{_milliseconds(entry.median_seconds)} ms ({_milliseconds(entry.iqr_seconds)})"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"


def without_empty(header: list[str], rows: Rows) -> Table:
    """A table without the columns that no row has anything in."""
    used = [column for column in range(len(header)) if any(row[column] for row in rows)]
    return [header[column] for column in used], [[row[column] for column in used] for row in rows]


MEASURED: dict[str, Callable[[Measures], str]] = {
    "accuracy": lambda m: percent(m.accuracy),
    "negative log-likelihood": lambda m: nats(m.intervals.get("nll", m.nll)),
    "predictive entropy E H(p)": lambda m: nats(m.intervals.get("predictive_entropy", m.predictive_entropy)),
    "marginal entropy H(p̄)": lambda m: nats(m.intervals.get("marginal_entropy", m.marginal_entropy)),
    "claimed information I(X;Ŷ)": lambda m: nats(m.intervals.get("claimed_information", m.claimed_information)),
    "label information I(Y;Ŷ)": lambda m: nats(m.intervals.get("label_information", m.label_information)),
    "calibration error": lambda m: percent(m.intervals.get("calibration_error", m.calibration_error)),
    "parameters": lambda m: f"{m.parameters:,}",
    "MACs per example": lambda m: f"{m.macs:,}",
    "bytes on disk": lambda m: f"{m.bytes:,}",
}
COMPARED: dict[str, Callable[[Comparison], str]] = {
    "agreement": lambda c: percent(c.agreement),
    "agreement on the teacher's errors": lambda c: percent(c.agreement_on_teacher_errors),
    "KL(teacher‖model)": lambda c: nats(c.kl_teacher_student),
    "KL(model‖teacher)": lambda c: nats(c.kl_student_teacher),
    "Jensen–Shannon": lambda c: nats(c.jensen_shannon),
    "McNemar's p, against the teacher": lambda c: "" if c.mcnemar is None else f"{c.mcnemar.p_value:.3g}",
}


def stages(outcomes: Sequence[StageOutcome]) -> Table:
    """What each stage took, where the model stood after it, and what it changed since the last that says so."""
    rows: Rows = []
    accuracy: float | None = None
    kl: float | None = None
    for stage in outcomes:
        rows.append(
            [
                stage.name,
                f"{stage.seconds:.3g}",
                "" if stage.accuracy is None else f"{stage.accuracy:.1%}",
                _change(accuracy, stage.accuracy, 100, "points"),
                "" if stage.kl is None else f"{stage.kl:.3g}",
                _change(kl, stage.kl, 1, ""),
            ]
        )
        accuracy = accuracy if stage.accuracy is None else stage.accuracy
        kl = kl if stage.kl is None else stage.kl
    header = ["stage", "seconds", "accuracy after it", "change", "KL from the teacher, nats", "change"]
    return without_empty(header, rows)


def _change(before: float | None, now: float | None, scale: float, unit: str) -> str:
    if before is None or now is None:
        return ""
    return f"{scale * (now - before):+.3g} {unit}".strip()


def groups(pruning: Pruning) -> Table:
    """A row for each dependency group: its units, and what one of them cost."""
    header = ["group", "kind", "units before", "after", "kept", "MACs of a unit", "parameters of a unit", "undecided"]
    undecided = {g.name: sum(s.groups[g.name].undecided for s in pruning.steps if g.name in s.groups)
                 for g in pruning.groups}  # fmt: skip
    return header, [
        [
            group.name,
            group.kind,
            f"{group.units_before:,}",
            f"{group.units_after:,}",
            f"{group.units_after / max(1, group.units_before):.1%}",
            f"{group.macs_per_unit:,}",
            f"{group.parameters_per_unit:,}",
            f"{undecided[group.name]:,}",
        ]
        for group in pruning.groups
    ]


def steps(pruning: Pruning, teacher_macs: int) -> Table:
    """A row for each network on the way."""
    header = [
        "step",
        "MACs",
        "of the teacher's",
        "parameters",
        "accuracy",
        "KL, nats",
        "allocation",
        "undecided",
        "file",
    ]
    rows = [
        [
            str(step.index),
            f"{step.macs:,}",
            f"{step.macs / max(1, teacher_macs):.1%}",
            f"{step.parameters:,}",
            "" if step.accuracy is None else f"{step.accuracy:.1%}",
            f"{step.kl:.3g}",
            step.allocation,
            f"{step.undecided:,}",
            step.file or "",
        ]
        for step in pruning.steps
    ]
    return without_empty(header, rows)


def classes(by_class: ByClass) -> Table:
    """A row for each class."""
    header = [
        "class", "examples", "teacher's recall", "student's recall", "teacher's precision", "student's precision",
        "agreement", "KL, nats",
    ]  # fmt: skip
    return header, [
        [
            label_of(outcome.label, outcome.name),
            f"{outcome.examples:,}",
            percent(outcome.teacher_recall),
            percent(outcome.student_recall),
            percent(outcome.teacher_precision),
            percent(outcome.student_precision),
            percent(outcome.agreement),
            nats(outcome.kl),
        ]
        for outcome in by_class.outcomes
    ]


def label_of(label: int, name: str | None) -> str:
    """A class by its number, and by its name where it has one."""
    return str(label) if name is None else f"{label} ({name})"


def prediction(found: Prediction) -> str:
    """A most likely class with its probability."""
    return f"{label_of(found.label, found.name)}, {found.probability:.1%}"


def verification(files: Sequence[FileVerification]) -> Table:
    """How far each file is from the trained model."""
    header = ["file", "opened with", "examples", "largest difference", "tolerance"]
    return header, [
        [f.file, f"{f.tool} {f.version}", str(f.examples), f"{f.max_abs_difference:.2g}", f"{f.tolerance:.2g}"]
        for f in files
    ]
