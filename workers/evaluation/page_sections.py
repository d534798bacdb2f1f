"""The sections of the report's page, each from the report and what the job was.

What is not there (a control, labels, a pruning) has no section. Every function yields the parts of its section, as
HTML; see html.py for what keeps user text from becoming any.
"""

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from service.contract.reports import ByInput, Pruning, Report
from workers.evaluation import figures_pruning, figures_quality, tables
from workers.evaluation.figures import inlined, paper, svg_of
from workers.evaluation.html import Markup, element, escaped, joined, table
from workers.evaluation.plots import History, learning_figure

MANY_ROWS = 24  # a longer table is folded up
SPREAD = re.compile(r"([^\[(]+) (\[[^]]*]|\([0-9.,e-]+\))")


@dataclass(frozen=True)
class Background:
    """What is said of a job besides its report."""

    history: History  # of what was trained; empty where nothing was
    spec: Mapping[str, Any]
    lineage: Mapping[str, Any]
    architecture: Mapping[str, Any] | None = None
    pictures: Mapping[int, bytes] = field(default_factory=dict)  # PNG files, by place in the split


def _figure(figure: Figure | None, name: str, label: str, caption: str) -> Markup:
    """A figure with its caption; nothing where there is no figure. `name` and `label` are ours, never a user's."""
    if figure is None:
        return Markup("")
    picture = element("div", Markup(inlined(svg_of(figure, label), name, escaped(label))), class_="wide")
    return element("figure", picture, element("figcaption", caption))


def _drawn(
    report: Report, draw: Callable[[Report], Figure | None], name: str, label: str, caption: str
) -> list[Markup]:
    with paper():
        found = _figure(draw(report), name, label, caption)
    return [found] if found else []


def _table(found: tables.Table, label: str, *, folded: bool | None = None) -> Markup:
    """A table; a long one is folded up."""
    header, rows = found
    made = table(header, ([row[0], *map(_cell, row[1:])] for row in rows), label=label)
    if folded if folded is not None else len(rows) > MANY_ROWS:
        return element("details", element("summary", f"{label}: {len(rows)} rows"), made)
    return made


def _cell(text: str) -> Markup:
    """A value, and its interval or spread, which may stand below it."""
    if (parts := SPREAD.fullmatch(text)) is None:
        return escaped(text)
    return joined([element("span", parts[1]), element("span", parts[2], class_="spread")], " ")


def _paragraph(text: str) -> Markup:
    return element("p", text)


def _findings(report: Report, _: Background) -> Iterator[Markup]:
    if report.findings:
        yield element("ul", *(element("li", finding.text) for finding in report.findings), class_="findings")


def _models(report: Report, _: Background) -> Iterator[Markup]:
    yield _table(tables.measures(report), "Measures of all models", folded=False)
    yield _paragraph(
        "Information is in nats. Agreement and divergences compare with the teacher. Claimed information, "
        "H(p̄) − E H(p), means what it says only for a calibrated model. Parentheses hold interquartile ranges."
    )
    yield from _drawn(
        report,
        figures_quality.accuracies,
        "accuracy",
        "Accuracy of every model, and its divergence from the teacher",
        "Accuracy with Wilson intervals, and mean KL divergence from the teacher with bootstrap intervals.",
    )


def _pruned(report: Report, _: Background) -> Iterator[Markup]:
    pruning = report.pruning
    if pruning is None:
        return
    yield _paragraph(f"Criterion: {pruning.criterion}. {pruning.reach}")
    yield from _drawn(
        report,
        figures_pruning.pareto,
        "pareto",
        "Accuracy and divergence over MACs for every network on the way",
        f"Every network on the way, judged on the {pruning.split} split, and the models of the final comparison, on "
        f"the {report.split} split. The controls have the same cost as the student.",
    )
    yield _table(tables.steps(pruning, report.teacher.macs), "Networks on the way")
    yield _units_removed(report, pruning)
    yield _table(tables.groups(pruning), "Groups of units")
    yield _scores(report, pruning)


def _units_removed(report: Report, pruning: Pruning) -> Markup:
    bounded = _bounded(len(pruning.groups), figures_pruning.MOST_GROUPS)
    caption = (
        "Units of each group before and after, and the share of the teacher's MACs that go with them, at the prices of "
        f"the beginning. A product of two groups counts for both, so that shares add up to more than all.{bounded}"
    )
    label = "Units of each group before and after"
    return joined(_drawn(report, figures_pruning.units_by_group, "units", label, caption))


def _scores(report: Report, pruning: Pruning) -> Markup:
    bounded = _bounded(len(pruning.groups), figures_pruning.MOST_GROUPS_WITH_SCORES)
    undecided = sum(step.undecided for step in pruning.steps)
    also = ", and from step to step" if len(pruning.steps) > 1 else ""
    caption = (
        "How the criterion judged the units of each group: in the first step, with the cut below which they went"
        f"{also}. Over all steps {undecided:,} units were within two standard errors of the cut.{bounded}"
    )
    label = "Distribution of the scores of each group, with the cut"
    return joined(_drawn(report, figures_pruning.score_distributions, "scores", label, caption))


def _bounded(number: int, most: int) -> str:
    return "" if number <= most else f" Of {number} groups, the {most} that hold most MACs are shown."


def _stages(report: Report, _: Background) -> Iterator[Markup]:
    if report.stages:
        yield _table(tables.stages(report.stages), "Stages of the job", folded=False)
        if report.pruning is not None:
            yield _paragraph(
                f"Accuracy and KL are those of the {report.pruning.split} split, on which steps are judged."
            )


def _trained(report: Report, background: Background) -> Iterator[Markup]:
    if not any(background.history.values()):
        return
    accuracy = None if report.teacher.accuracy is None else report.teacher.accuracy.value
    chosen = ""
    if report.selection is not None:
        chosen = f" The {report.selection.selected} epoch ({report.selection.epoch}) became the result."
    yield from _drawn(
        report,
        lambda _: learning_figure(background.history, accuracy, report.split),
        "curve",
        "Learning curve",
        f"Loss and accuracy by epoch.{chosen}",
    )


def _calibrated(report: Report, _: Background) -> Iterator[Markup]:
    yield from _drawn(
        report,
        figures_quality.calibration_diagram,
        "calibration",
        "Reliability diagram of teacher and student",
        "Bins of equal numbers of examples, with Wilson intervals: how often a model is right (left), and by how much "
        "that differs from what it says (right; below zero it is too sure).",
    )


def _inputs(report: Report, background: Background) -> Iterator[Markup]:
    if report.by_input is None:
        return
    yield from _drawn(
        report,
        figures_quality.divergence_spread,
        "divergence",
        "Distribution of the divergence over inputs",
        "How far the student's answer is from its teacher's, input by input, on a logarithmic axis. What lies below "
        "the first bin counts in it.",
    )
    yield element("h3", "Where student and teacher differ most")
    yield _most_different(report.by_input, background.pictures)
    yield _paragraph(f"Rows count from 0 in the {report.split} split; KL(teacher‖student) is in nats.")


def _most_different(by_input: ByInput, pictures: Mapping[int, bytes]) -> Markup:
    header: list[object] = ["row", "label", "teacher", "student", "KL, nats"]
    rows: list[list[object]] = [
        [
            f"{each.row:,}",
            "" if each.label is None else tables.label_of(each.label, each.name),
            tables.prediction(each.teacher),
            tables.prediction(each.student),
            f"{each.kl:.4g}",
        ]
        for each in by_input.most_different
    ]
    if pictures:
        header.insert(1, "input")
        for row, each in zip(rows, by_input.most_different, strict=True):
            row.insert(1, _picture(each.row, pictures.get(each.row)))
    return table(header, rows, label="Inputs on which student and teacher differ most")


def _picture(row: int, png: bytes | None) -> Markup:
    if png is None:
        return Markup("")
    return element("img", src=f"data:image/png;base64,{base64.b64encode(png).decode()}", alt=f"input of row {row}")


def _classes(report: Report, _: Background) -> Iterator[Markup]:
    by_class = report.by_class
    if by_class is None:
        return
    shown, most = figures_quality.classes_shown(report), figures_quality.MOST_CLASSES_SHOWN
    bounded = "" if len(shown) < most else f" The {most} classes whose recall changed most are shown."
    yield from _drawn(
        report,
        figures_quality.recall_by_class,
        "classes",
        "Recall and precision of each class",
        f"Of the examples of a class, how many each model finds; of its answers of that class, how many are right."
        f"{bounded}",
    )
    if by_class.classes > len(by_class.outcomes):
        yield _paragraph(
            f"Of {by_class.classes:,} classes, the table holds the {len(by_class.outcomes)} on whose examples teacher "
            "and student differ most by KL."
        )
    yield _table(tables.classes(by_class), "Classes")


def _timed(report: Report, _: Background) -> Iterator[Markup]:
    where = report.environment
    yield from _drawn(
        report,
        figures_quality.latencies,
        "latency",
        "Latency of every model",
        f"Median time of one pass, and its interquartile range, measured in alternation on {where.device} with "
        f"{where.threads} thread(s).",
    )


def _verified(report: Report, _: Background) -> Iterator[Markup]:
    if report.verification:
        yield _paragraph(
            "Before they were published, a fresh process opened the files and compared their logits with the trained "
            "model's, on all of the examples together and on one alone."
        )
        yield _table(tables.verification(report.verification), "Verification of the files", folded=False)
        hashes: Sequence[Sequence[object]] = [[file.file, file.sha256] for file in report.verification]
        yield table(["file", "SHA-256"], hashes, label="Hashes of the files")


def _origin(report: Report, background: Background) -> Iterator[Markup]:
    where = report.environment
    facts = {"device": where.device, "threads": where.threads, "precision": where.precision, **where.versions}
    yield table(["", ""], [[name, value] for name, value in facts.items()], label="Environment")
    yield element("h3", "Lineage")
    yield element("pre", _json(background.lineage))
    if background.architecture is not None:
        yield element("h3", "Architecture")
        yield element("pre", _json(background.architecture))
    yield element("h3", "The job, as it was resolved")
    yield element("pre", _json(background.spec))


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


SECTIONS: Mapping[str, Callable[[Report, Background], Iterator[Markup]]] = {
    "Findings": _findings,
    "Models compared": _models,
    "What was removed": _pruned,
    "Stages": _stages,
    "Training": _trained,
    "Calibration": _calibrated,
    "Input by input": _inputs,
    "Class by class": _classes,
    "Latency": _timed,
    "Verification": _verified,
    "Environment and lineage": _origin,
}
