"""From scores to the units that go: the least needed first, until the network costs what it should.

Within a group units go by their score. Which group is next, is what allocations differ in: each gives the next unit
of every group a rank, and the lowest goes.

    global                            score
    per_mac, per_parameter,           score / what the unit saves now; a negative score is not divided and goes
    per_byte, per_millisecond           before all others, what saves nothing of it after them
    uniform                           the share of the group that would be gone: all groups lose the same share
    isomorphic                        the share of the group's class (structures.py) that would be gone, then score:
                                        all classes lose the same share, and within a class score alone decides

When the cost is reached, units that went last come back where there is room for them: no unit is left out that
would still fit, so that the cost ends nearer below the goal than any unit that went could bring it.

Where the number of units left must be a multiple, the "unit" that goes is a block of them, with the mean of their
scores (their sum, where it is divided by what all of them save).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from workers.graph.groups import Group
from workers.pruning.schedule.account import Account, CostName
from workers.pruning.schedule.limits import Limits
from workers.pruning.schedule.structures import classes
from workers.pruning.scores import Scores

Rank = tuple[float, ...]
NEGATIVE, ORDINARY, WORTHLESS = 0.0, 1.0, 2.0

SAVED: Mapping[str, CostName] = {
    "per_mac": "macs",
    "per_parameter": "params",
    "per_byte": "bytes",
    "per_millisecond": "latency",
}
WITHIN_GROUPS = ("uniform",)  # allocations that compare no scores of different groups
NOT_COMPARABLE = (
    "the scores of this criterion speak of one layer alone and are not compared across layers: every group loses the "
    "same share (uniform), instead of {allocation}"
)


@dataclass(frozen=True)
class Cut:
    """The units that are to go now, by the teacher's numbers."""

    selection: Mapping[str, tuple[int, ...]]
    cuts: Mapping[str, float | None]  # group -> the score at which its units were parted; None where it was not asked
    notes: tuple[str, ...] = ()


@dataclass
class Queue:
    """The units of a group that are there and judged, the least needed first."""

    group: Group
    units: list[int]
    scores: list[float]
    left: int  # units that the group has now, judged or not
    floor: int
    limits: Limits
    start: int = field(init=False)  # units that the group had before
    taken: int = 0

    def __post_init__(self) -> None:
        self.start = self.left

    def block(self) -> list[int]:
        """The units that go next, together; none where the group is at its floor."""
        below = self.limits.below(self.group, self.left)
        count = self.left - below
        if below < self.floor or self.taken + count > len(self.units):
            return []
        return self.units[self.taken : self.taken + count]

    def take(self, count: int) -> None:
        """The next `count` units are gone; they are back where it is negative."""
        self.taken += count
        self.left -= count

    def block_scores(self, block: Sequence[int]) -> list[float]:
        return self.scores[self.taken : self.taken + len(block)]

    def boundary(self) -> float | None:
        """Half-way between the last score that went and the first that did not."""
        if not self.taken:
            return None
        last = self.scores[self.taken - 1]
        return last if self.taken == len(self.scores) else (last + self.scores[self.taken]) / 2


def allocate(
    account: Account,
    scores: Scores,
    allocation: str,
    cost: CostName,
    goal: float,
    limits: Limits,
    max_group_share: float = 1.0,
) -> Cut:
    """Take units out of `account` until `cost` is at most `goal`, or nothing may go any more.

    `scores` are by the teacher's numbers, NaN where a unit is gone or was not judged (it stays). A unit that saves
    nothing of `cost` stays as well. `max_group_share` bounds what a group loses now, of the units that it has now;
    one unit (or block) may always go.
    """
    if not scores.comparable and allocation not in WITHIN_GROUPS:
        cut = Allocator(account, scores, "uniform", cost, limits, max_group_share).run(goal)
        return Cut(cut.selection, cut.cuts, (NOT_COMPARABLE.format(allocation=allocation),))
    return Allocator(account, scores, allocation, cost, limits, max_group_share).run(goal)


class Allocator:
    """One allocation under way."""

    def __init__(
        self,
        account: Account,
        scores: Scores,
        allocation: str,
        cost: CostName,
        limits: Limits,
        max_group_share: float,
    ) -> None:
        self.account, self.allocation, self.cost = account, allocation, cost
        self.queues = {
            name: queue
            for name, group in account.groups.items()
            if (queue := queued(account, scores, group, limits, max_group_share)).block()
            and account.saving(name, queue.block(), cost) > 0
        }
        self.order = {name: place for place, name in enumerate(account.groups)}
        self.classes = {
            name: tuple(one for one in members if one in self.queues)
            for name, members in (classes(account.groups) if allocation == "isomorphic" else {}).items()
        }
        self.rank: Callable[[str, Sequence[int]], Rank] = {
            "global": self._by_score,
            "uniform": self._by_share_of_group,
            "isomorphic": self._by_share_of_class,
            **dict.fromkeys(SAVED, self._by_score_for_saving),
        }[allocation]

    def run(self, goal: float) -> Cut:
        """Remove units until the goal is reached."""
        ranks: dict[str, Rank] = {}
        self._rank_anew(ranks, self.queues)
        went: list[tuple[str, list[int], Rank]] = []
        while self.account.cost(self.cost) > goal and ranks:
            name = min(ranks, key=lambda one: (ranks[one], self.order[one]))
            queue = self.queues[name]
            block = queue.block()
            went.append((name, block, ranks[name]))
            self.account.remove(name, block)
            queue.take(len(block))
            self._rank_anew(ranks, self._affected(name))
        stays = self._give_back(went, goal)
        threshold = max((rank for _, _, rank in stays), default=None)
        cuts = {name: self._cut(name, threshold) for name in self.queues}
        selection = {
            name: tuple(sorted(queue.units[: queue.taken])) for name, queue in self.queues.items() if queue.taken
        }
        return Cut(selection, cuts)

    def _rank_anew(self, ranks: dict[str, Rank], names: Sequence[str] | Mapping[str, Queue]) -> None:
        for name in names:
            block = self.queues[name].block()
            if block:
                ranks[name] = self.rank(name, block)
            else:
                ranks.pop(name, None)

    def _affected(self, name: str) -> Sequence[str]:
        """The groups whose next unit has another rank once a unit of `name` is gone."""
        if self.allocation in SAVED:
            return [one for one in self.account.neighbours(name) if one in self.queues]
        return self.classes.get(name, (name,))

    def _give_back(self, went: list[tuple[str, list[int], Rank]], goal: float) -> list[tuple[str, list[int], Rank]]:
        """Put back what there is room for, last gone first; units that do harm stay away. Returns what went for good.

        Within a group only the last can come back; where it does not fit, none of the others, which are alike, does.
        """
        full: set[str] = set()
        stays = []
        for name, block, rank in reversed(went):
            harmful = self.queues[name].scores[self.queues[name].taken - 1] < 0
            if name not in full and not harmful:
                self.account.restore(name, block)
                if self.account.cost(self.cost) <= goal:
                    self.queues[name].take(-len(block))
                    continue
                self.account.remove(name, block)
            full.add(name)
            stays.append((name, block, rank))
        return stays

    def _cut(self, name: str, threshold: Rank | None) -> float | None:
        """The score at which the group was parted; where it lost nothing, the score at which it would have."""
        queue = self.queues[name]
        block = queue.block()
        if queue.taken or threshold is None or not block or self.allocation not in {*SAVED, "global"}:
            return queue.boundary()
        if self.allocation == "global" or threshold[0] == NEGATIVE:
            return threshold[-1]
        if threshold[0] == WORTHLESS:
            return None
        return threshold[-1] * self.account.saving(name, block, SAVED[self.allocation]) / len(block)

    # Ranks; the lowest goes first ------------------------------------------------------------------------------------

    def _by_score(self, name: str, block: Sequence[int]) -> Rank:
        scores = self.queues[name].block_scores(block)
        return (ORDINARY, sum(scores) / len(block))

    def _by_score_for_saving(self, name: str, block: Sequence[int]) -> Rank:
        total = sum(self.queues[name].block_scores(block))
        if total < 0:
            return (NEGATIVE, total / len(block))
        saving = self.account.saving(name, block, SAVED[self.allocation])
        return (ORDINARY, total / saving) if saving > 0 else (WORTHLESS, total)

    def _by_share_of_group(self, name: str, block: Sequence[int]) -> Rank:
        queue = self.queues[name]
        return ((queue.taken + len(block) / 2) / queue.start,)

    def _by_share_of_class(self, name: str, block: Sequence[int]) -> Rank:
        queues = [self.queues[one] for one in self.classes[name]]
        taken, start = sum(queue.taken for queue in queues), sum(queue.start for queue in queues)
        return ((taken + len(block) / 2) / start, *self._by_score(name, block))


def queued(account: Account, scores: Scores, group: Group, limits: Limits, max_group_share: float) -> Queue:
    """The units of a group in the order in which they may go."""
    known = scores.values.get(group.name)
    values = torch.full((group.num_units,), torch.nan) if known is None else known.detach().double().cpu()
    gone = account.gone[group.name]
    judged = sorted(
        (score, unit) for unit, score in enumerate(values.tolist()) if not math.isnan(score) and unit not in gone
    )
    left = account.num_left(group.name)
    floor = limits.step_floor(group, left, max_group_share)
    return Queue(group, [unit for _, unit in judged], [score for score, _ in judged], left, floor, limits)
