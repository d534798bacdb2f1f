"""A whole report, as a distillation job with a control ends with."""

from functools import cache
from typing import Any, TypeVar

from torch import Tensor

from service.contract.reports import (
    Environment,
    GroupOutcome,
    GroupScores,
    Latency,
    Pruning,
    PruningStep,
    Report,
    Selection,
    StageOutcome,
)
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


# Of a pruning job -----------------------------------------------------------------------------------------------------

NOTE = "output_entropy was taken literally (predictive, signed): {}% of the units have a negative score."
STAGES = (
    StageOutcome(name="loading", seconds=1.0, accuracy=0.96, kl=0.0),
    StageOutcome(name="scoring", seconds=20.0),
    StageOutcome(name="removing", seconds=2.0, accuracy=0.61, kl=1.25),
    StageOutcome(name="refitting", seconds=4.0, accuracy=0.93, kl=0.125),
    StageOutcome(name="recovering", seconds=30.0, accuracy=0.95, kl=0.0625),
)


def scores_of(before: int, after: int, *, signed: bool = False) -> GroupScores:
    histogram = (before - 3, *[0] * 17, 2, 1)
    quantiles = (-0.02, -0.01, 0.001, 0.01, 0.02) if signed else (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
    return GroupScores(
        before=before, after=after, cut=quantiles[1], quantiles=quantiles, histogram=histogram, undecided=2
    )


def pruning(
    *, names: tuple[str, ...] = ("conv1", "conv2"), steps: int = 3, labelled: bool = True, signed: bool = False
) -> Pruning:
    """Each step takes four units of every group."""
    return Pruning(
        split="validation",
        criterion="output_kl",
        stopped_by="target",
        reach="The target can be reached.",
        groups=tuple(
            GroupOutcome(
                name=name, kind="channels", units_before=32, units_after=32 - 4 * steps, macs_per_unit=5000 - index,
                parameters_per_unit=20,
            )
            for index, name in enumerate(names)
        ),
        steps=tuple(
            PruningStep(
                index=index,
                macs=400_000 - 300_000 * index // steps,
                parameters=4000 - 1000 * index,
                bytes=16_000 - 4000 * index,
                kl=0.01 * index,
                accuracy=0.96 - 0.01 * index if labelled else None,
                allocation="per_mac",
                calibration_examples=256,
                undecided=2 * len(names),
                groups={name: scores_of(36 - 4 * index, 32 - 4 * index, signed=signed) for name in names},
                notes=(NOTE.format(40 + index),) if signed else (),
                file=f"step-{index:03}.pt2",
            )
            for index in range(1, steps + 1)
        ),
    )  # fmt: skip


def pruned_report(
    *, labelled: bool = True, classes: list[str] | None = None, split: str = "test", **changes: Any
) -> Report:
    """A report on a pruned network with two controls: "l2", far worse, and "random", the student once more."""
    logits, labels = answers(control=False, other=False)
    logits["l2"], _ = labelled_logits(9, strength=0.5, labels=labels)
    logits["random"] = logits["student"].clone()
    small = ("student", "l2", "random")
    return build_report(
        job_id="job_01ktcz5vwm9j6p2n4qe8rhsxtb",
        split=split,
        logits=logits,
        labels=labels if labelled else None,
        costs={"teacher": COSTS["teacher"]} | dict.fromkeys(small, COSTS["student"]),
        bytes_on_disk={"teacher": 16_400} | dict.fromkeys(small, 4_300),
        latencies={"teacher": LATENCIES["teacher"]} | dict.fromkeys(small, LATENCIES["student"]),
        selection=None,
        environment=ENVIRONMENT,
        stages=STAGES if labelled else [stage.model_copy(update={"accuracy": None}) for stage in STAGES],
        pruning=pruning(labelled=labelled, **changes),
        classes=classes,
    )
