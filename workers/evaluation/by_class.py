"""Teacher and student class by class: what averages over all examples hide.

Recall is the share of a class's examples that a model finds, precision the share of its answers of that class that
are right; both are proportions, with their Wilson intervals. A class that occurs among predictions only has no recall,
one that is never predicted no precision. Of very many classes the most different are kept, or the table would drown
what it is to show.

Shapes: logits (n, K), labels (n,) int64; divergences in nats, in float64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from service.contract.reports import ByClass, ClassOutcome, Interval
from workers.evaluation.intervals import wilson
from workers.information.divergence import kl_divergence_from_logits

MOST_CLASSES = 100


def by_class(teacher: Tensor, student: Tensor, labels: Tensor, names: Sequence[str] | None = None) -> ByClass:
    """Compare logits (n, K) class by class; `names` are what the dataset calls the classes."""
    answers = {"teacher": teacher.argmax(1), "student": student.argmax(1)}
    K = teacher.shape[1]
    counts = {"examples": _count(labels, K), "same": _count(labels[answers["teacher"] == answers["student"]], K)}
    for role, found in answers.items():
        counts[role] = _count(found, K)
        counts[f"{role} right"] = _count(labels[found == labels], K)
    kl = kl_divergence_from_logits(teacher.double(), student.double())
    means = torch.zeros(K, dtype=torch.float64).index_add_(0, labels, kl) / counts["examples"].clamp(min=1)
    occurring = (counts["examples"] + counts["teacher"] + counts["student"]).nonzero().flatten()
    # A stable sort, so that equal divergences keep the order of the classes.
    order = means[occurring].sort(descending=True, stable=True).indices[:MOST_CLASSES]
    outcomes = []
    for label in occurring[order].sort().values.tolist():
        of = {name: int(column[label]) for name, column in counts.items()}
        examples = of["examples"]
        outcomes.append(
            ClassOutcome(
                label=label,
                name=name_of(label, names),
                examples=examples,
                teacher_recall=_share(of["teacher right"], examples),
                teacher_precision=_share(of["teacher right"], of["teacher"]),
                student_recall=_share(of["student right"], examples),
                student_precision=_share(of["student right"], of["student"]),
                agreement=_share(of["same"], examples),
                kl=float(means[label]) if examples else None,
            )
        )
    return ByClass(classes=len(occurring), outcomes=tuple(outcomes))


def name_of(label: int, names: Sequence[str] | None) -> str | None:
    """What the dataset calls a class; None where it has no name for it."""
    return names[label] if names is not None and label < len(names) else None


def _count(classes: Tensor, K: int) -> Tensor:
    return torch.bincount(classes, minlength=K)


def _share(successes: int, trials: int) -> Interval | None:
    return wilson(successes, trials) if trials else None
