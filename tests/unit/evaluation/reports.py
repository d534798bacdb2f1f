"""A whole report, as a distillation job with a control ends with."""

from functools import cache
from typing import TypeVar

from torch import Tensor

from service.contract.reports import Environment, Latency, Report, Selection, StageOutcome
from tests.unit.evaluation.predictions import labelled_logits
from workers.evaluation.cost import Cost
from workers.evaluation.report import build_report

ENVIRONMENT = Environment(device="cpu", threads=1, precision="float32", versions={"torch": "2.13.0"})
SELECTION = Selection(selected="best", epoch=7, other="last", other_epoch=30)
COSTS = {"teacher": Cost(4000, 400_000, 16_000), "student": Cost(1000, 100_000, 4000)}
LATENCIES: dict[str, tuple[Latency, ...]] = {
    "teacher": (Latency(batch=1, median_seconds=0.0022, iqr_seconds=0.0001),),
    "student": (Latency(batch=1, median_seconds=0.0020, iqr_seconds=0.0001),),
}


T = TypeVar("T")


def present(value: T | None) -> T:
    """What must be there."""
    assert value is not None
    return value


def answers(
    *,
    control: bool = True,
    other: bool = True,
    labelled: bool = True,
    student_strength: float = 2.5,
    num_examples: int = 300,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Logits by role, and labels."""
    teacher, labels = labelled_logits(0, num_examples, strength=4.0)
    strengths = {"student": student_strength}
    strengths |= {"control": 2.4} if control else {}
    strengths |= {"other": 2.3} if other else {}
    logits = {"teacher": teacher}
    for seed, (role, strength) in enumerate(strengths.items(), start=1):
        logits[role], _ = labelled_logits(seed, strength=strength, labels=labels)
    return logits, labels if labelled else None


def report(
    logits: dict[str, Tensor] | None = None,
    labels: Tensor | None = None,
    *,
    split: str = "test",
    latencies: dict[str, tuple[Latency, ...]] = LATENCIES,
) -> Report:
    """The report on these answers, or on the ones above."""
    if logits is None and latencies is LATENCIES:
        return standard_report(split)
    if logits is None:
        logits, labels = answers()
    roles = {"teacher": "teacher", "student": "student", "control": "student"}
    return build_report(
        job_id="job_01ktcz5vwm9j6p2n4qe8rhsxtb",
        split=split,
        logits=logits,
        labels=labels,
        costs={role: COSTS[like] for role, like in roles.items()},
        bytes_on_disk={"teacher": 16_400, "student": 4_300, "control": 4_300},
        latencies={role: latencies[like] for role, like in roles.items()},
        selection=SELECTION,
        environment=ENVIRONMENT,
        stages=[StageOutcome(name="train", seconds=12.5)],
    )


@cache
def standard_report(split: str) -> Report:
    """The report that most tests look at, made once."""
    logits, labels = answers()
    return report(logits, labels, split=split)
