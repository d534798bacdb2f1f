"""What the command line prints: plain columns for lists, and the report as a table that a person understands."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Json = dict[str, Any]
Cell = Callable[[Json], str]


def _time(text: str | None) -> str:
    return "" if text is None else text[:19].replace("T", " ")


def _labels(row: Json) -> str:
    return " ".join(f"{key}:{value}" for key, value in row["labels"].items())


def _outcome(job: Json) -> str:
    if job["result"]:
        return str(job["result"]["model_id"] or "a report")
    return str((job["error"] or {}).get("detail") or job["reason"] or "")


JOBS: Mapping[str, Cell] = {
    "id": lambda job: job["id"],
    "type": lambda job: job["type"],
    "state": lambda job: job["state"],
    "stage": lambda job: job["stage"]["name"] if job["stage"] else "",
    "done": lambda job: f"{job['progress']['fraction'] or 0:.0%}",
    "created": lambda job: _time(job["created_at"]),
    "result, error or reason": _outcome,
}
MODELS: Mapping[str, Cell] = {
    "id": lambda model: model["id"],
    "name": lambda model: model["name"],
    "state": lambda model: model["state"],
    "architecture": lambda model: (model.get("architecture") or {}).get("name", ""),
    "parameters": lambda model: counted(model.get("parameters")),
    "MACs": lambda model: counted(model.get("macs")),
    "created": lambda model: _time(model["created_at"]),
    "labels or error": lambda model: (model.get("error") or {}).get("detail") or _labels(model),
}
DATASETS: Mapping[str, Cell] = {
    "id": lambda dataset: dataset["id"],
    "name": lambda dataset: dataset["name"],
    "state": lambda dataset: dataset["state"],
    "splits": lambda dataset: ", ".join(f"{name} {size}" for name, size in (dataset.get("splits") or {}).items()),
    "shape": lambda dataset: "x".join(map(str, dataset.get("input_shape") or ())),
    "classes": lambda dataset: counted(dataset.get("num_classes")),
    "created": lambda dataset: _time(dataset["created_at"]),
    "labels or error": lambda dataset: (dataset.get("error") or {}).get("detail") or _labels(dataset),
}


def counted(number: float | None) -> str:
    """Return a count with thousands separated; nothing for what is not known."""
    return "" if number is None else f"{number:,.0f}"


def estimate(interval: Json | None, digits: int = 4, scale: float = 1.0, unit: str = "") -> str:
    """Return an estimate with its 95% interval."""
    if interval is None:
        return "–"
    value, low, high = (f"{interval[name] * scale:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value}{unit} [{low}, {high}]"


def percent(interval: Json | None) -> str:
    """Return a share and its interval in percent."""
    return estimate(interval, 1, 100.0, "%")


def number(value: float | None) -> str:
    """Return a number with four places, or a dash where there is none."""
    return "–" if value is None else f"{value:.4f}"


def print_rows(console: "Console", columns: Mapping[str, Cell], rows: Iterable[Json]) -> None:
    """Print one line for each row."""
    print_table(console, list(columns), ([cell(row) for cell in columns.values()] for row in rows))


def print_table(console: "Console", header: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Print columns; the first, which names the row, is never broken."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title or None, title_justify="left")
    for position, name in enumerate(header):
        table.add_column(name, overflow="fold", no_wrap=position == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


MEASURES: Mapping[str, Callable[[Json], str]] = {
    "accuracy": lambda m: percent(m["accuracy"]),
    "negative log-likelihood, nats": lambda m: number(m["nll"]),
    "calibration error": lambda m: number(m["calibration_error"]),
    "entropy of its answers, nats": lambda m: number(m["predictive_entropy"]),
    "claimed information, nats": lambda m: number(m["claimed_information"]),
    "label information, nats": lambda m: number(m["label_information"]),
}
COMPARED: Mapping[str, Callable[[Json], str]] = {
    "agreement with the teacher": lambda c: percent(c["agreement"]),
    "agreement where the teacher errs": lambda c: percent(c["agreement_on_teacher_errors"]),
    "KL(teacher, it), nats": lambda c: estimate(c["kl_teacher_student"]),
    "KL(it, teacher), nats": lambda c: estimate(c["kl_student_teacher"]),
    "Jensen-Shannon, nats": lambda c: estimate(c["jensen_shannon"]),
    "McNemar p-value": lambda c: "–" if c["mcnemar"] is None else f"{c['mcnemar']['p_value']:.3g}",
}
COSTS: Mapping[str, Callable[[Json], str]] = {
    "parameters": lambda m: counted(m["parameters"]),
    "MACs per example": lambda m: counted(m["macs"]),
    "bytes": lambda m: counted(m["bytes"]),
}


def models_of(report: Json) -> dict[str, tuple[Json, Json | None]]:
    """Return measures and comparison with the teacher of every model, by role."""
    found: dict[str, tuple[Json, Json | None]] = {"teacher": (report["teacher"], None)}
    found["student"] = (report["student"], report["comparison"])
    if report.get("control"):
        found["control"] = (report["control"], report.get("control_comparison"))
    controls = report.get("controls") or {}
    return found | {name: (each["measures"], each["comparison"]) for name, each in controls.items()}


def report_rows(report: Json) -> list[list[str]]:
    """Return the report's rows: what is measured, then teacher, student and controls."""
    models = [measures for measures, _ in models_of(report).values()]
    comparisons = [compared for _, compared in models_of(report).values()][1:]
    rows = [[name, *(show(model) for model in models)] for name, show in MEASURES.items()]
    for name, show in COMPARED.items():
        rows.append([name, "", *("–" if compared is None else show(compared) for compared in comparisons)])
    rows += [[name, *(show(model) for model in models)] for name, show in COSTS.items()]
    for position, timing in enumerate(report["teacher"]["latency"]):
        name = f"latency of a batch of {timing['batch']}, ms"
        rows.append([name, *(_latency(model, position) for model in models)])
    return rows


def _latency(model: Json, position: int) -> str:
    if position >= len(model["latency"]):
        return "–"
    timing = model["latency"][position]
    return f"{timing['median_seconds'] * 1000:.3f} (IQR {timing['iqr_seconds'] * 1000:.3f})"


GROUPS: Mapping[str, Cell] = {
    "group": lambda group: group["name"],
    "units": lambda group: counted(group["units_before"]),
    "kept": lambda group: counted(group["units_after"]),
    "share": lambda group: f"{group['units_after'] / max(1, group['units_before']):.1%}",
    "MACs of a unit": lambda group: counted(group["macs_per_unit"]),
}
STAGES: Mapping[str, Cell] = {
    "stage": lambda stage: stage["name"],
    "seconds": lambda stage: f"{stage['seconds']:.1f}",
    "accuracy after it": lambda stage: "" if stage["accuracy"] is None else f"{stage['accuracy']:.1%}",
    "KL after it, nats": lambda stage: number(stage["kl"]) if stage["kl"] is not None else "",
}


def print_report(console: "Console", report: Json) -> None:
    """Print the comparison and the findings in words."""
    environment, selection, pruning = report["environment"], report.get("selection"), report.get("pruning")
    header = [f"{report['examples']} examples of the {report['split']} split", *models_of(report)]
    print_table(console, header, report_rows(report))
    if pruning:
        print_rows(console, GROUPS, pruning["groups"])
        print_rows(console, STAGES, report["stages"])
    chosen = f"The student is the {selection['selected']} epoch ({selection['epoch']}). " if selection else ""
    console.print(
        f"{chosen}Intervals are 95%. Measured on {environment['device']} with {environment['threads']} threads in "
        f"{environment['precision']}.",
        highlight=False,
    )
    for file in report.get("verification", ()):
        console.print(
            f"{file['file']}, opened by {file['tool']} {file['version']}, differs from the trained model by at most "
            f"{file['max_abs_difference']:.2g} in its logits (tolerance {file['tolerance']:.2g}).",
            highlight=False,
        )
    for finding in report["findings"]:
        console.print(f"• {finding['text']}", markup=False, highlight=False)
