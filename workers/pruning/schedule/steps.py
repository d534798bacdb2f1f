"""What a step of pruning did: the part of a report that says which units went, why, and what it cost the network."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workers.pruning.schedule.account import Costs
from workers.pruning.schedule.allocation import Cut
from workers.pruning.schedule.pruned import Pruned
from workers.pruning.scores import Scores

BINS = 20
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
STANDARD_ERRORS = 2.0  # nearer to the cut than this, a unit cannot be told from those on its other side


@dataclass(frozen=True)
class GroupStep:
    """One group in one step. Scores are those of the units that were there before it, and were judged."""

    before: int
    after: int
    cut: float | None  # the score that parted the units; None where the group was not asked for any
    quantiles: tuple[float, ...]  # at 0, 25, 50, 75 and 100%; none where no unit was judged
    histogram: tuple[int, ...]  # 20 bins of equal width from the lowest score to the highest
    undecided: int  # units whose score is within two standard errors of the cut


@dataclass(frozen=True)
class Step:
    """One step that was taken."""

    index: int  # from 1
    target: float  # what the network was to cost after it
    costs: Costs
    kl: float  # nats from the teacher, on the validation split
    accuracy: float | None
    candidate: str  # the allocation that was chosen
    groups: Mapping[str, GroupStep]
    refit: Mapping[str, Any] | None
    examples: int  # on which units were judged
    notes: tuple[str, ...]

    @property
    def removed(self) -> Mapping[str, int]:
        """How many units each group lost."""
        return {name: group.before - group.after for name, group in self.groups.items() if group.after < group.before}

    @property
    def undecided(self) -> int:
        """Units of all groups that cannot be told from the cut."""
        return sum(group.undecided for group in self.groups.values())

    def plain(self) -> dict[str, Any]:
        """The same as plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Step":
        """What `plain` was made of."""
        groups = {name: GroupStep(**group) for name, group in plain["groups"].items()}
        return cls(**{**plain, "costs": Costs(**plain["costs"]), "groups": groups})


def group_steps(before: Pruned, after: Pruned, scores: Scores, cut: Cut) -> dict[str, GroupStep]:
    """What a step did to every group."""
    found = {}
    for name in before.origin:
        values = scores.values.get(name, torch.empty(0))
        judged = ~values.isnan()
        errors = scores.errors.get(name)
        found[name] = GroupStep(
            before.num_left(name),
            after.num_left(name),
            cut.cuts.get(name),
            *distribution(values[judged]),
            undecided(values[judged], None if errors is None else errors[judged], cut.cuts.get(name)),
        )
    return found


def distribution(scores: Tensor) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Quantiles and histogram of scores (units,)."""
    finite = scores[scores.isfinite()].double().cpu()
    if not len(finite):
        return (), ()
    low, high = float(finite.min()), float(finite.max())
    places = ((finite - low) / (high - low) * BINS).long().clamp(0, BINS - 1) if high > low else finite.long() * 0
    quantiles = torch.quantile(finite, torch.tensor(QUANTILES, dtype=torch.float64))
    return tuple(quantiles.tolist()), tuple(torch.bincount(places, minlength=BINS).tolist())


def undecided(scores: Tensor, errors: Tensor | None, cut: float | None) -> int:
    """How many scores are within two standard errors of the cut; 0 where errors are not known."""
    if errors is None or cut is None:
        return 0
    return int(((scores - cut).abs() < STANDARD_ERRORS * errors).sum())
