"""A student against its teacher, on the same examples: how often and how far they differ, and how surely.

All intervals of a comparison come from the same resamples of the examples, in which teacher and student stay
paired: what is hard for both cancels, and a difference is seen that two separate intervals would hide.

McNemar's test asks whether two models are equally accurate. Examples that both have right or wrong say nothing;
of the b + c others, b would be Binomial(b + c, ½) if the models were equal. The exact test sums that binomial's
tails instead of approximating them by χ², which is wrong for small counts.

Shapes: logits (n, K), labels (n,) int64; divergences in nats, in float64.
Sources: McNemar 1947; Edwards 1948; Efron and Tibshirani 1993 (paired bootstrap).
"""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from service.contract.reports import Comparison, DistillationEffect, Interval, McNemar
from workers.evaluation.intervals import mean_intervals, resampling_for, wilson
from workers.evaluation.quality import correct
from workers.information.crossentropy import cross_entropy_from_logits
from workers.information.divergence import (
    jensen_shannon_from_logits,
    kl_divergence_from_logits,
    reverse_kl_divergence_from_logits,
)
from workers.information.entropy import entropy_from_logits


@dataclass(frozen=True)
class Ratios:
    """The student's cost over the teacher's; below 1 the student is cheaper."""

    latency: float
    macs: float
    parameters: float


def compare(teacher: Tensor, student: Tensor, labels: Tensor | None, *, ratios: Ratios, seed: int = 0) -> Comparison:
    """Compare logits (n, K) of teacher and student; without labels, what needs them is None."""
    rows = divergence_rows(teacher, student) | difference_rows(teacher, student, labels)
    intervals = _intervals(rows, seed)
    return Comparison(
        agreement=agreement(teacher, student),
        agreement_on_teacher_errors=None if labels is None else agreement_on_errors(teacher, student, labels),
        mcnemar=None if labels is None else mcnemar(correct(teacher, labels), correct(student, labels)),
        latency_ratio=ratios.latency,
        macs_ratio=ratios.macs,
        parameters_ratio=ratios.parameters,
        **intervals,
    )


def distillation_effect(
    teacher: Tensor, student: Tensor, control: Tensor, labels: Tensor | None, *, seed: int = 0
) -> DistillationEffect:
    """Student minus control, from logits (n, K): what being taught added to being trained."""
    closer = kl_divergence_from_logits(teacher.double(), student.double())
    farther = kl_divergence_from_logits(teacher.double(), control.double())
    rows = difference_rows(control, student, labels) | {"kl_difference": closer - farther}
    del rows["predictive_entropy_difference"]
    return DistillationEffect(
        mcnemar=None if labels is None else mcnemar(correct(control, labels), correct(student, labels)),
        **_intervals(rows, seed),
    )


def divergence_rows(teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
    """KL both ways and JS of every example, (n,) float64 nats, by their names in a comparison."""
    t, s = teacher.double(), student.double()
    return {
        "kl_teacher_student": kl_divergence_from_logits(t, s),
        "kl_student_teacher": reverse_kl_divergence_from_logits(t, s),
        "jensen_shannon": jensen_shannon_from_logits(t, s),
    }


def difference_rows(first: Tensor, second: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    """Second minus first in entropy and, with labels, in correctness and log loss: (n,) float64 each."""
    a, b = first.double(), second.double()
    rows = {"predictive_entropy_difference": entropy_from_logits(b) - entropy_from_logits(a)}
    if labels is not None:
        rows["accuracy_difference"] = correct(b, labels).double() - correct(a, labels).double()
        rows["nll_difference"] = cross_entropy_from_logits(b, labels) - cross_entropy_from_logits(a, labels)
    return rows


def agreement(teacher: Tensor, student: Tensor) -> Interval:
    """Share of examples with the same most likely class, with its Wilson interval."""
    return wilson(int((teacher.argmax(1) == student.argmax(1)).sum()), len(teacher))


def agreement_on_errors(teacher: Tensor, student: Tensor, labels: Tensor) -> Interval | None:
    """Agreement on the examples that the teacher has wrong; None when there is no such example."""
    wrong = ~correct(teacher, labels)
    return agreement(teacher[wrong], student[wrong]) if bool(wrong.any()) else None


def mcnemar(first: Tensor, second: Tensor) -> McNemar:
    """McNemar's exact two-sided test, from whether each model is right on each example: (n,) bool, twice."""
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    return McNemar(b=b, c=c, p_value=symmetric_binomial_p_value(b, c))


def symmetric_binomial_p_value(b: int, c: int) -> float:
    """min(1, 2·P(X ≤ min(b, c))) for X ~ Binomial(b + c, ½), summed in logarithms so that no count overflows."""
    total = torch.tensor(float(b + c), dtype=torch.float64)
    tail = torch.arange(min(b, c) + 1, dtype=torch.float64)
    log_choose = torch.lgamma(total + 1) - torch.lgamma(tail + 1) - torch.lgamma(total - tail + 1)
    return min(1.0, 2 * float((torch.logsumexp(log_choose, 0) - total * log(2)).exp()))


def _intervals(rows: dict[str, Tensor], seed: int) -> dict[str, Interval]:
    table = torch.stack(list(rows.values()), dim=1)
    return dict(zip(rows, mean_intervals(table, resampling_for(len(table), seed)), strict=True))
