"""Who stands in a report: every model by its role, in the order in which tables and figures show them."""

from service.contract.reports import Comparison, Measures, Report


def models_of(report: Report) -> dict[str, Measures]:
    """All models by role: teacher, student, then the controls."""
    found = {"teacher": report.teacher, "student": report.student}
    if report.control is not None:
        found["control"] = report.control
    return found | {name: contender.measures for name, contender in report.controls.items()}


def comparisons_of(report: Report) -> dict[str, Comparison]:
    """How each model but the teacher compares with the teacher, by role."""
    found = {"student": report.comparison}
    if report.control_comparison is not None:
        found["control"] = report.control_comparison
    return found | {name: contender.comparison for name, contender in report.controls.items()}


def title_of(report: Report, architecture_name: str | None) -> str:
    """What the result is called in its card and on its page."""
    made = "Student" if report.pruning is None else "Pruned network"
    return made if architecture_name is None else f"{made}: {architecture_name}"
