"""Figures of a pruning: the way from the teacher to the result, what became of each group, and how units were judged.

Each takes the report and returns a matplotlib figure, or None where there is nothing to draw.
"""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, SymmetricalLogLocator

from service.contract.reports import Comparison, GroupOutcome, GroupScores, Measures, Pruning, Report
from workers.evaluation.figures import (
    BLUE,
    GREY,
    SKY,
    VERMILION,
    compact,
    grid,
    logarithmic,
    look_of,
    new_figure,
    percentage,
    short,
)

MOST_GROUPS = 24
MOST_GROUPS_WITH_SCORES = 12


def pareto(report: Report) -> Figure | None:
    """Accuracy and divergence over MACs: every network on the way, the result, its teacher and the controls."""
    pruning = report.pruning
    if pruning is None or not pruning.steps:
        return None
    labelled = report.teacher.accuracy is not None
    figure = new_figure(4.3)
    panels = figure.subplots(1, 2 if labelled else 1, squeeze=False)[0]
    if labelled:
        _way(panels[0], pruning, "accuracy")
        _ends(panels[0], report, "accuracy")
        panels[0].set_ylabel("Accuracy")
        panels[0].yaxis.set_major_formatter(FuncFormatter(percentage))
    _way(panels[-1], pruning, "kl")
    _ends(panels[-1], report, "kl")
    panels[-1].set_ylabel("KL(teacher‖model), nats")
    if any(value > 0 for value in _divergences(report, pruning)):
        _positive(panels[-1], min(value for value in _divergences(report, pruning) if value > 0))
    for axes in panels:
        axes.margins(0.08)
        logarithmic(axes, "x")
        axes.set_xlabel("MACs for one example")
        grid(axes)
    handles, labels = panels[-1].get_legend_handles_labels()
    if labelled:
        handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, handlelength=3)
    return figure


def _way(axes: Axes, pruning: Pruning, quantity: str) -> None:
    points = [(step.macs, getattr(step, quantity)) for step in pruning.steps]
    points = [(macs, value) for macs, value in points if value is not None and (quantity != "kl" or value > 0)]
    if points:
        macs, values = zip(*points, strict=True)
        axes.plot(
            macs, values, color=BLUE, linestyle="-", marker=".", markersize=6, linewidth=1.1,
            label=f"on the way, {pruning.split}",
        )  # fmt: skip


def _contenders(report: Report) -> list[tuple[str, Measures, Comparison]]:
    controls = [(name, each.measures, each.comparison) for name, each in report.controls.items()]
    return [("student", report.student, report.comparison), *controls]


def _ends(axes: Axes, report: Report, quantity: str) -> None:
    """The models that were compared in the end, on the report's split."""
    if quantity == "accuracy" and report.teacher.accuracy is not None:
        _point(axes, "teacher", report.teacher.macs, report.teacher.accuracy.value, report.split)
    for name, measures, comparison in _contenders(report):
        value = comparison.kl_teacher_student if quantity == "kl" else measures.accuracy
        if value is not None and (quantity != "kl" or value.value > 0):
            _point(axes, name, measures.macs, value.value, report.split)


def _point(axes: Axes, role: str, macs: int, value: float, split: str) -> None:
    look = look_of(role)
    axes.plot(
        [macs], [value], color=look.colour, marker=look.marker, markersize=7.5, linestyle="", markerfacecolor="none",
        markeredgewidth=1.6, label=f"{role}, {split}",
    )  # fmt: skip


def _divergences(report: Report, pruning: Pruning) -> list[float]:
    ends = [comparison.kl_teacher_student.value for _, _, comparison in _contenders(report)]
    return [*(step.kl for step in pruning.steps), *ends]


def _positive(axes: Axes, lowest: float) -> None:
    """A logarithmic axis of divergences, which ends where they are rounding errors."""
    logarithmic(axes, "y")
    if lowest < 1e-9:
        axes.set_ylim(bottom=1e-9)


def groups_shown(pruning: Pruning, most: int) -> tuple[GroupOutcome, ...]:
    """The groups that a figure has room for: those whose units hold most MACs, in the network's order."""
    held = sorted(pruning.groups, key=lambda group: -group.units_before * group.macs_per_unit)[:most]
    return tuple(group for group in pruning.groups if group in held)


def units_by_group(report: Report) -> Figure | None:
    """Units of each group before and after, and the share of the network's MACs that they hold."""
    pruning = report.pruning
    if pruning is None or not pruning.groups:
        return None
    groups = groups_shown(pruning, MOST_GROUPS)
    figure = new_figure(1.1 + 0.36 * len(groups))
    left, right = figure.subplots(1, 2, sharey=True)
    for row, group in enumerate(groups):
        share = group.macs_per_unit / max(1, report.teacher.macs)
        _before_and_after(left, row, group.units_before, group.units_after)
        _before_and_after(right, row, group.units_before * share, group.units_after * share)
        kept = group.units_after / max(1, group.units_before)
        left.annotate(
            f"{group.units_after:,} of {group.units_before:,} ({kept:.0%})", (group.units_before, row), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    left.set_yticks(range(len(groups)), [short(group.name) for group in groups])
    left.set_ylim(len(groups) - 0.5, -0.5)
    left.set_xlim(0, 1.42 * max(group.units_before for group in groups))
    left.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    left.set_xlabel("Units")
    right.set_xlabel("Share of the network's MACs that go with them")
    right.xaxis.set_major_formatter(FuncFormatter(percentage))
    for axes in (left, right):
        grid(axes, "x")
    removed, kept = (container[0] for container in left.containers[:2])
    figure.legend([kept, removed], ["kept", "removed"], loc="outside upper right", ncols=2)
    return figure


def _before_and_after(axes: Axes, row: int, before: float, after: float) -> None:
    axes.barh(row, before, height=0.62, color="white", edgecolor=GREY, linewidth=0.9, hatch="////")
    axes.barh(row, after, height=0.62, color=SKY, edgecolor=BLUE, linewidth=0.9)


# Scores -----------------------------------------------------------------------------------------------------------


def groups_with_scores(pruning: Pruning) -> tuple[str, ...]:
    """The groups that were judged, as many as a figure has room for."""
    judged = {name for step in pruning.steps for name, scores in step.groups.items() if scores.histogram}
    groups = tuple(group for group in pruning.groups if group.name in judged)
    return tuple(g.name for g in groups_shown(pruning.model_copy(update={"groups": groups}), MOST_GROUPS_WITH_SCORES))


def score_distributions(report: Report) -> Figure | None:
    """For each group the scores in the first step with the cut, and how scores and cut went from step to step."""
    pruning = report.pruning
    names = () if pruning is None else groups_with_scores(pruning)
    if pruning is None or not names:
        return None
    in_steps = len(pruning.steps) > 1
    num_rows = len(names) if in_steps else -(-len(names) // 2)
    figure = new_figure(0.75 + 1.55 * num_rows)
    panels = figure.subplots(num_rows, 2, squeeze=False)
    places = panels[:, 0] if in_steps else panels.flat
    for axes, name in zip(places, names, strict=False):
        first = next(step for step in pruning.steps if name in step.groups and step.groups[name].histogram)
        _histogram(axes, first.groups[name])
        axes.set_title(f"{short(name)}, step {first.index}: {first.groups[name].before:,} units", loc="left")
        axes.set_ylabel("Units")
    panels[-1, 0].set_xlabel("Score (high: keep)")
    if in_steps:
        for axes, name in zip(panels[:, 1], names, strict=True):
            _course(axes, pruning, name)
        panels[-1, 1].set_xlabel("Step")
        figure.legend(*panels[0, 1].get_legend_handles_labels(), loc="outside upper right", ncols=4)
    elif len(names) % 2:
        panels[-1, 1].set_axis_off()
    return figure


def _histogram(axes: Axes, scores: GroupScores) -> None:
    low, high = scores.quantiles[0], scores.quantiles[-1]
    width = (high - low) / len(scores.histogram) or max(abs(low), 1.0) / len(scores.histogram)
    lefts = [low + index * width for index in range(len(scores.histogram))]
    axes.bar(lefts, scores.histogram, width, align="edge", color="#9ecae1", edgecolor="#356a8c", linewidth=0.6)
    if scores.cut is not None:
        label = f"cut {compact(scores.cut)}"
        axes.axvline(scores.cut, color=VERMILION, linestyle="--", linewidth=1.4, label=label)
        axes.legend(loc="upper right", borderaxespad=0.1)
    axes.xaxis.set_major_formatter(FuncFormatter(compact))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    grid(axes, "y")


def _course(axes: Axes, pruning: Pruning, name: str) -> None:
    """Quantiles of a group's scores over the steps, and where the cut was."""
    steps = [step for step in pruning.steps if name in step.groups and step.groups[name].quantiles]
    numbers = [step.index for step in steps]
    lowest, lower, middle, upper, highest = zip(*(step.groups[name].quantiles for step in steps), strict=True)
    axes.fill_between(numbers, lowest, highest, color=SKY, alpha=0.25, linewidth=0, label="all units")
    axes.fill_between(numbers, lower, upper, color=SKY, alpha=0.7, linewidth=0, label="middle half")
    axes.plot(numbers, middle, color=BLUE, linewidth=1.4, label="median")
    cuts = [(step.index, step.groups[name].cut) for step in steps if step.groups[name].cut is not None]
    if cuts:
        axes.plot(
            *zip(*cuts, strict=True), color=VERMILION, marker="_", markersize=9, linestyle="--", lw=1, label="cut"
        )
    _score_axis(axes, min(lowest), max(highest))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_title(f"{short(name)}, step by step", loc="left")
    grid(axes)


def _score_axis(axes: Axes, low: float, high: float) -> None:
    """Scores reach over many decades; those of a signed criterion lie on both sides of zero."""
    if low > 0 and high > 20 * low:
        logarithmic(axes, "y")
    else:
        linear_until = max(abs(low), abs(high)) / 1000 or 1.0
        axes.set_yscale("symlog", linthresh=linear_until)
        axes.yaxis.set_major_locator(SymmetricalLogLocator(linthresh=linear_until, base=10))
        axes.yaxis.set_minor_locator(NullLocator())
        # Numbers where the axis is linear would lie on that of zero.
        axes.yaxis.set_major_formatter(
            lambda value, _: compact(value) if abs(value) > linear_until or not value else ""
        )
        return
    axes.yaxis.set_major_formatter(FuncFormatter(compact))
