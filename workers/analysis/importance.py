"""What pruning would do, by the scores of a criterion: a preview of one cut, before anything is removed.

The least needed units go, at once, until half of the MACs are left, as a pruning job with the schedule one_shot would
choose them: by score for each MAC that a unit saves, or the same share of every group for criteria whose scores
speak of one layer alone. What a job does beyond that (judging again after each step, refitting) makes its result
better than this first sight of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from service.contract.analysis import GroupImportance, Importance, Preview
from service.contract.criteria import CriterionOptions
from workers.analysis.listing import Room, numbers, rounded, unit_values
from workers.graph.groups import Groups
from workers.pruning.schedule.account import Account, CostLayout
from workers.pruning.schedule.allocation import Cut, allocate
from workers.pruning.schedule.limits import Limits
from workers.pruning.schedule.steps import undecided
from workers.pruning.scores import Scores

TARGET = 0.5  # of the MACs
NAMED_GROUPS = 3


@dataclass(frozen=True)
class Prospect:
    """A cut, and what would be left."""

    cut: Cut
    preview: Preview


def prospect(groups: Groups, layout: CostLayout, scores: Scores, target: float = TARGET) -> Prospect:
    """What removing the least needed units would leave; two units at least stay in every group."""
    account = Account(layout)
    whole = groups.size.macs
    allocation = "per_mac" if scores.comparable else "uniform"
    cut = allocate(account, scores, allocation, "macs", target * whole, Limits())
    preview = Preview(
        target=target,
        macs=round(account.cost("macs")),
        parameters=round(account.cost("params")),
        allocation="per_mac" if scores.comparable else "uniform",
        removed=sum(map(len, cut.selection.values())),
        share_of_score=share_of(scores, cut.selection),
        reached=account.cost("macs") <= target * whole,
    )
    return Prospect(cut, preview)


def share_of(scores: Scores, selection: Mapping[str, tuple[int, ...]]) -> float | None:
    """What the selected units hold of the sum of all scores; None where that says nothing."""
    everything = torch.cat([values.double().cpu() for values in scores.values.values()] or [torch.zeros(0)])
    known = everything[everything.isfinite()]
    total = float(known.sum())
    if not len(known) or float(known.min()) < 0 or total <= 0 or not scores.comparable:
        return None
    gone = sum(float(scores.values[name].double().cpu()[list(units)].nansum()) for name, units in selection.items())
    return rounded(gone / total)


def importance(criterion: CriterionOptions, groups: Groups, scores: Scores, found: Prospect, room: Room) -> Importance:
    """A criterion's part of the report."""
    return Importance(
        criterion=criterion.model_dump(mode="json"),
        comparable=scores.comparable,
        examples=scores.examples,
        notes=scores.notes,
        groups={name: group_importance(name, scores, found.cut, room) for name in groups},
        preview=found.preview,
        reading=reading(criterion, groups, scores, found),
    )


def group_importance(name: str, scores: Scores, cut: Cut, room: Room) -> GroupImportance:
    """What the criterion says of one group."""
    values, errors = scores.values[name].double().cpu(), scores.errors.get(name)
    errors = None if errors is None else errors.double().cpu()
    listed = room.takes(values, errors)
    parted = cut.cuts.get(name)
    judged = values.isfinite()
    return GroupImportance(
        scores=unit_values(values, listed=listed),
        errors=numbers(errors) if listed and errors is not None else None,
        median_error=None if errors is None else median(errors),
        removed=len(cut.selection.get(name, ())),
        cut=None if parted is None else rounded(parted),
        undecided=undecided(values[judged], None if errors is None else errors[judged], parted),
    )


def median(errors: Tensor) -> float | None:
    """The middle of what is known."""
    known = errors[errors.isfinite()]
    return rounded(float(known.median())) if len(known) else None


def reading(criterion: CriterionOptions, groups: Groups, scores: Scores, found: Prospect) -> str:
    """The preview in words."""
    name, preview = getattr(criterion, "name", ""), found.preview
    if not groups:
        return "The model has no units that can be removed."
    every = sum(group.num_units for group in groups.values())
    if not preview.removed:
        return f"By {name}, no unit of the model could go: every group is at its floor of two units."
    aim = f"pruning to {preview.target:.0%} of the MACs" if preview.reached else "pruning as far as it goes"
    told = f"By {name}, {aim} would remove {preview.removed:,} of {every:,} units ({most_of(groups, found.cut)})"
    if preview.share_of_score is not None:
        told += f"; together they hold {preview.share_of_score:.2%} of all scores"
    if not preview.reached:
        left = preview.macs / groups.size.macs
        told += f"; {left:.0%} of the MACs would be left, and no less can be reached"
    if not scores.comparable:
        told += f". {name} reads one layer alone: every group loses the same share, and only the order within it counts"
    return told + "."


def most_of(groups: Groups, cut: Cut) -> str:
    """The groups that would lose most, in words."""
    losses = sorted(cut.selection.items(), key=lambda one: -len(one[1]))
    told = [f"{len(units)} of {groups[name].num_units} of {name}" for name, units in losses[:NAMED_GROUPS]]
    rest = len(losses) - len(told)
    return ", ".join([*told, f"and of {rest} more groups"] if rest else told)
