"""What the command line prints of an analysis: the models side by side, their groups, and what pruning would do."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from service.tables import COMPARED, COSTS, MEASURES, counted, number, print_table

if TYPE_CHECKING:
    from rich.console import Console

Json = dict[str, Any]
GROUP_COLUMNS = (
    "group",
    "units",
    "dead",
    "MACs of a unit",
    "entropy, nats",
    "label information, nats (chance)",
    "R² from the others (chance)",
    "would go by",
)


def print_analysis(console: "Console", report: Json) -> None:
    """Print the measures, the groups of every model, and the findings in words."""
    names = [model["model"] for model in report["models"]]
    print_table(
        console, [f"{report['examples']} examples of the {report['split']} split", *names], measure_rows(report)
    )
    for model in report["models"]:
        rows = group_rows(model)
        if rows:
            print_table(console, GROUP_COLUMNS, rows, title=f"Inside {model['model']}{measured_on(model)}")
        for note in model["notes"]:
            console.print(f"{model['model']}: {note}", markup=False, highlight=False)
    environment = report["environment"]
    console.print(
        f"Intervals are 95%. Measured on {environment['device']} with {environment['threads']} threads in "
        f"{environment['precision']}. Of the units of a group: the median entropy and R² (linear), the mean label "
        "information; chance is what unrelated units would show.",
        highlight=False,
    )
    for finding in report["findings"]:
        console.print(f"• {finding['text']}", markup=False, highlight=False)


def measure_rows(report: Json) -> list[list[str]]:
    """Return what is measured of the outputs: a column for each model."""
    measures = [model["measures"] for model in report["models"]]
    rows = [[name, *(show(each) for each in measures)] for name, show in MEASURES.items()]
    if report["comparison"] is not None:
        rows += [
            [name.replace("(it", "(second").replace(" it)", " second)").replace("teacher", "first"), "", compared]
            for name, compared in ((name, show(report["comparison"])) for name, show in COMPARED.items())
        ]
    return rows + [[name, *(show(each) for each in measures)] for name, show in COSTS.items()]


def measured_on(model: Json) -> str:
    """Return on what its layers were measured."""
    layers = model["layers"]
    return "" if layers is None else f", on {layers['examples']} inputs of the {layers['split']} split"


def group_rows(model: Json) -> list[list[str]]:
    """Return a row for each group of a model."""
    judged = model["importance"]
    groups = (model["layers"] or {}).get("groups")
    if groups is None:
        names = list(judged[0]["groups"]) if judged else []
        return [[name, *[""] * (len(GROUP_COLUMNS) - 2), would_go(name, judged)] for name in names]
    return [
        [
            group["name"],
            counted(group["units"]),
            counted(group["dead"]),
            counted(group["macs_per_unit"]),
            middle(group["entropy"]),
            beside(average(group["label_information"]), group["label_information_chance"]),
            beside(*explained(group)),
            would_go(group["name"], judged),
        ]
        for group in groups
    ]


def explained(group: Json) -> tuple[str, float | None]:
    """Return the R² of a group's middle unit, and what chance gives."""
    redundancy = group["redundancy"]
    return ("–", None) if redundancy is None else (middle(redundancy["explained"]), redundancy["chance"])


def middle(values: Json | None) -> str:
    """Return the median of a quantity over the units of a group."""
    return number(None if values is None else values["quantiles"]["50"])


def average(values: Json | None) -> str:
    """Return the mean of a quantity over the units of a group."""
    return number(None if values is None else values["mean"])


def beside(value: str, chance: float | None) -> str:
    """Return a value with what chance gives."""
    return value if chance is None else f"{value} ({chance:.4f})"


def would_go(group: str, judged: Sequence[Json]) -> str:
    """Return how many units each criterion's preview removes of a group."""
    return ", ".join(f"{each['criterion']['name']}: {counted(each['groups'][group]['removed'])}" for each in judged)
