"""A student against its teacher, on the same examples: how often and how far they differ, and how surely.

All intervals of a comparison come from the same resamples of the examples, in which teacher and student stay
paired: what is hard for both cancels, and a difference is seen that two separate intervals would hide.

McNemar's test asks whether two models are equally accurate. Examples that both have right or wrong say nothing;
of the b + c others, b would be Binomial(b + c, ½) if the models were equal. The exact test sums that binomial's
tails instead of approximating them by χ², which is wrong for small counts.

Shapes: logits (n, K), labels (n,) int64; divergences in nats, in float64.
Sources: McNemar 1947; Edwards 1948; Efron and Tibshirani 1993 (paired bootstrap).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from service.contract.reports import Advantage, Comparison, Interval, McNemar
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
    return compare_each(teacher, {"student": student}, labels, ratios={"student": ratios}, seed=seed)["student"]


def compare_each(
    teacher: Tensor,
    students: Mapping[str, Tensor],
    labels: Tensor | None,
    *,
    ratios: Mapping[str, Ratios],
    seed: int = 0,
) -> dict[str, Comparison]:
    """Compare the logits (n, K) of each student with the teacher's, by name.

    All share the resamples, which take most of the time: many students are compared in the time of one.
    """
    rows = {
        (name, quantity): values
        for name, student in students.items()
        for quantity, values in (divergence_rows(teacher, student) | difference_rows(teacher, student, labels)).items()
    }
    intervals = _by_owner(_intervals(rows, seed))
    return {
        name: Comparison(
            agreement=agreement(teacher, student),
            agreement_on_teacher_errors=None if labels is None else agreement_on_errors(teacher, student, labels),
            mcnemar=None if labels is None else mcnemar(correct(teacher, labels), correct(student, labels)),
            latency_ratio=ratios[name].latency,
            macs_ratio=ratios[name].macs,
            parameters_ratio=ratios[name].parameters,
            **intervals[name],
        )
        for name, student in students.items()
    }


def advantage_over_each(
    teacher: Tensor, student: Tensor, others: Mapping[str, Tensor], labels: Tensor | None, *, seed: int = 0
) -> dict[str, Advantage]:
    """Student minus each of the others, by name, from logits (n, K); all share the resamples."""
    if not others:
        return {}
    closer = kl_divergence_from_logits(teacher.double(), student.double())
    rows: dict[tuple[str, str], Tensor] = {}
    for name, other in others.items():
        farther = kl_divergence_from_logits(teacher.double(), other.double())
        quantities = difference_rows(other, student, labels) | {"kl_difference": closer - farther}
        del quantities["predictive_entropy_difference"]
        rows |= {(name, quantity): values for quantity, values in quantities.items()}
    intervals = _by_owner(_intervals(rows, seed))
    return {
        name: Advantage(
            mcnemar=None if labels is None else mcnemar(correct(other, labels), correct(student, labels)),
            **intervals[name],
        )
        for name, other in others.items()
    }


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


def _by_owner(intervals: Mapping[tuple[str, str], Interval]) -> dict[str, dict[str, Interval]]:
    found: dict[str, dict[str, Interval]] = {}
    for (owner, quantity), interval in intervals.items():
        found.setdefault(owner, {})[quantity] = interval
    return found


def _intervals(rows: Mapping[tuple[str, str], Tensor], seed: int) -> dict[tuple[str, str], Interval]:
    table = torch.stack(list(rows.values()), dim=1)
    return dict(zip(rows, mean_intervals(table, resampling_for(len(table), seed)), strict=True))
