"""Figures of every report: how right, how calibrated, how near the teacher, and how fast the models are.

Each takes the report and returns a matplotlib figure, or None where it was not measured.
"""

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from service.contract.reports import ClassOutcome, Interval, Measures, Report, Spread
from workers.evaluation.figures import (
    GREY,
    LOOKS,
    WIDTH,
    compact,
    grid,
    logarithmic,
    look_of,
    new_figure,
    percentage,
    short,
)
from workers.evaluation.intervals import wilson
from workers.evaluation.roles import comparisons_of, models_of

MOST_CLASSES_SHOWN = 20
ROW = 0.3  # inches, of a row in a figure of rows


def accuracies(report: Report) -> Figure | None:
    """Accuracy of each model with its interval, and its divergence from the teacher, one row for each."""
    models = {name: m for name, m in models_of(report).items() if m.accuracy is not None}
    if not models:
        return None
    comparisons = comparisons_of(report)
    figure = new_figure(0.9 + ROW * len(models))
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(models)
    for row, (name, measures) in enumerate(models.items()):
        assert measures.accuracy is not None  # noqa: S101  chosen above
        _estimate(left, measures.accuracy, row, name)
        if name in comparisons:
            _estimate(right, comparisons[name].kl_teacher_student, row, name)
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.5, -0.5)
    left.set_xlabel(f"Accuracy on the {report.split} split")
    left.xaxis.set_major_formatter(FuncFormatter(percentage))
    left.xaxis.set_major_locator(MaxNLocator(6))
    right.set_xlabel("KL(teacher‖model), nats")
    if all(comparison.kl_teacher_student.low > 0 for comparison in comparisons.values()):
        logarithmic(right, "x")
    for axes in (left, right):
        grid(axes)
    return figure


def _estimate(axes: Axes, interval: Interval, row: float, role: str) -> None:
    look = look_of(role)
    reach = [[interval.value - interval.low], [interval.high - interval.value]]
    # Rounding may leave the estimate a hair outside.
    reach = [[max(0.0, end) for end in side] for side in reach]
    axes.errorbar(
        [interval.value], [row], xerr=reach, color=look.colour, marker=look.marker, markersize=5, capsize=2.5,
        linewidth=1.2,
    )  # fmt: skip


def calibration_diagram(report: Report) -> Figure | None:
    """Accuracy over confidence for teacher, student and control; on the diagonal a model is right as often as it says.

    The same for the least confident predictions and for those near certainty would not fit into one picture: the
    second panel shows how far each bin is from the diagonal.
    """
    models = {"teacher": report.teacher, "student": report.student}
    models |= {} if report.control is None else {"control": report.control}
    models = {name: measures for name, measures in models.items() if measures.reliability}
    if not models:
        return None
    figure = new_figure(3.9)
    left, right = figure.subplots(1, 2)
    left.axline((0, 0), (1, 1), color=GREY, linewidth=0.8, linestyle=":", label="as often as it says")
    right.axhline(0, color=GREY, linewidth=0.8, linestyle=":")
    for name, measures in models.items():
        _bins(left, right, name, measures)
    low = min(entry.confidence for measures in models.values() for entry in measures.reliability)
    for axes, label in ((left, "Accuracy"), (right, "Accuracy − confidence, points")):
        axes.set(xlabel="Confidence", ylabel=label, xlim=(max(0.0, low - 0.05), 1.02))
    left.set_ylim(max(-0.02, left.get_ylim()[0]), 1.05)
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.3g}".replace("+0", "0")))
    for axes in (left, right):
        axes.xaxis.set_major_formatter(FuncFormatter(percentage))
        grid(axes)
    left.yaxis.set_major_formatter(FuncFormatter(percentage))
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=4, handlelength=3.2)
    return figure


def _bins(left: Axes, right: Axes, name: str, measures: Measures) -> None:
    look, bins = look_of(name), measures.reliability
    confidence, accuracy = [b.confidence for b in bins], [b.accuracy for b in bins]
    intervals = [wilson(round(b.accuracy * b.examples), b.examples) for b in bins]
    reach = [
        [max(0.0, a - interval.low) for a, interval in zip(accuracy, intervals, strict=True)],
        [max(0.0, interval.high - a) for a, interval in zip(accuracy, intervals, strict=True)],
    ]
    gaps = [a - c for a, c in zip(accuracy, confidence, strict=True)]
    for axes, values in ((left, accuracy), (right, gaps)):
        axes.errorbar(
            confidence, values, yerr=reach, color=look.colour, marker=look.marker, linestyle=look.line, markersize=4.5,
            linewidth=1.1, elinewidth=0.6, capsize=1.5, label=name,
        )  # fmt: skip


def divergence_spread(report: Report) -> Figure | None:
    """How the divergence of the student from its teacher is spread over the inputs, on a logarithmic axis."""
    if report.by_input is None:
        return None
    figure = new_figure(3.3)
    spreads = {"KL(teacher‖student), nats": report.by_input.kl, "Jensen–Shannon, nats": report.by_input.jensen_shannon}
    for axes, (label, found) in zip(figure.subplots(1, 2, sharey=True), spreads.items(), strict=True):
        _spread(axes, found)
        axes.set_xlabel(label)
    figure.axes[0].set_ylabel("Inputs")
    return figure


def _spread(axes: Axes, found: Spread) -> None:
    widths = [high - low for low, high in pairwise(found.edges)]
    axes.bar(found.edges[:-1], found.histogram, widths, align="edge", color="#9ecae1", edgecolor="#356a8c", lw=0.6)
    axes.set_xlim(found.edges[0], found.edges[-1])
    logarithmic(axes, "x")
    for percent, line in (("50", "-"), ("95", "--"), ("99", ":")):
        value = found.quantiles[percent]
        if found.edges[0] <= value <= found.edges[-1]:
            label = f"{percent}%: {compact(value)}" if percent != "50" else f"median: {compact(value)}"
            axes.axvline(value, color="black", linestyle=line, linewidth=1.1, label=label)
    if found.edges[0] <= found.mean <= found.edges[-1]:
        axes.plot([found.mean], [0], marker="^", markersize=8, color=LOOKS["control"].colour, linestyle="",
                  clip_on=False, label=f"mean: {compact(found.mean)}")  # fmt: skip
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    grid(axes, "y")
    axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1), handlelength=2.2, columnspacing=1.2)


def classes_shown(report: Report) -> tuple[ClassOutcome, ...]:
    """The classes that a figure has room for: those of the largest change in recall, by label."""
    if report.by_class is None:
        return ()
    with_examples = [outcome for outcome in report.by_class.outcomes if outcome.teacher_recall is not None]
    ranked = sorted(with_examples, key=lambda outcome: (-abs(_recall_change(outcome)), outcome.label))
    return tuple(sorted(ranked[:MOST_CLASSES_SHOWN], key=lambda outcome: outcome.label))


def _recall_change(outcome: ClassOutcome) -> float:
    if outcome.teacher_recall is None or outcome.student_recall is None:
        return 0.0
    return outcome.student_recall.value - outcome.teacher_recall.value


def recall_by_class(report: Report) -> Figure | None:
    """Recall and precision of teacher and student for each class, with intervals."""
    outcomes = classes_shown(report)
    if not outcomes:
        return None
    figure = new_figure(1.1 + 0.36 * len(outcomes))
    left, right = figure.subplots(1, 2, sharey=True)
    for row, outcome in enumerate(outcomes):
        for shift, role in ((-0.16, "teacher"), (0.16, "student")):
            for axes, quantity in ((left, "recall"), (right, "precision")):
                interval = getattr(outcome, f"{role}_{quantity}")
                if interval is not None:
                    _estimate(axes, interval, row + shift, role)
    left.set_yticks(range(len(outcomes)), [_class_label(outcome) for outcome in outcomes])
    left.set_ylim(len(outcomes) - 0.5, -0.5)
    for axes, label in ((left, "Recall"), (right, "Precision")):
        axes.set_xlabel(label)
        axes.xaxis.set_major_formatter(FuncFormatter(percentage))
        grid(axes, "x")
        for row in range(1, len(outcomes), 2):
            axes.axhspan(row - 0.5, row + 0.5, color="0.965", linewidth=0, zorder=0)
    _legend_of_roles(figure, ("teacher", "student"))
    return figure


def _class_label(outcome: ClassOutcome) -> str:
    return str(outcome.label) if outcome.name is None else f"{short(outcome.name)} ({outcome.label})"


def _legend_of_roles(figure: Figure, roles: Sequence[str]) -> None:
    axes = figure.axes[0]
    for role in roles:
        look = look_of(role)
        axes.plot([], [], color=look.colour, marker=look.marker, linestyle="-", markersize=5, label=role)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(roles))


def latencies(report: Report) -> Figure | None:
    """Median time of a pass with its interquartile range, for each batch size."""
    batches = [entry.batch for entry in report.teacher.latency]
    if not batches:
        return None
    models = models_of(report)
    figure = new_figure(0.9 + ROW * len(models), WIDTH)
    panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    for index, (axes, batch) in enumerate(zip(panels, batches, strict=True)):
        for row, (name, measures) in enumerate(models.items()):
            _bar(axes, row, name, measures, index)
        axes.set_xlabel(f"Milliseconds at batch {batch}")
        axes.margins(x=0.16)
        axes.set_xlim(left=0)
        grid(axes, "x")
    panels[0].set_yticks(range(len(models)), list(models))
    panels[0].set_ylim(len(models) - 0.5, -0.5)
    return figure


def _bar(axes: Axes, row: int, name: str, measures: Measures, index: int) -> None:
    if index >= len(measures.latency):
        return
    entry = measures.latency[index]
    median, spread = 1000 * entry.median_seconds, 1000 * entry.iqr_seconds
    # The quartiles lie about the median; only their distance is known.
    axes.barh(
        row, median, height=0.55, color=look_of(name).colour, alpha=0.75, xerr=spread / 2,
        error_kw={"ecolor": "black", "capsize": 2.5, "elinewidth": 1},
    )  # fmt: skip
    axes.annotate(
        f"{median:.3g}", (median + spread / 2, row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8
    )
