"""Which units go, word for word: after every unit the whole network's cost is counted anew, and all groups compared.

global: the unit of the lowest score. per_…: a negative score first, as it is; then score / (cost now - cost without
the unit). uniform: the group of which the smallest share would be gone. isomorphic: the class of which the smallest
share would be gone, and in it the unit of the lowest score. Until the cost is at most the goal; then, from the last
to the first, a unit comes back if the goal still holds, until one of its group has not; negative ones never do.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from workers.graph.groups import Groups

Units = dict[str, list[int]]
CostOf = Callable[[Units], int]


def macs_of(groups: Groups) -> CostOf:
    return lambda gone: groups.size_without(gone).macs


def parameters_of(groups: Groups) -> CostOf:
    return lambda gone: groups.size_without(gone).parameters


def greedy(  # noqa: C901  in one piece, as it is said above
    groups: Groups,
    scores: Mapping[str, Sequence[float]],
    allocation: str,
    cost_of: CostOf,
    goal: float,
    *,
    gone: Mapping[str, Sequence[int]],
    floors: Mapping[str, int],
    saving_of: CostOf | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> Units:
    """The units that go beside those that are `gone`; one at a time."""
    saving_of = saving_of or cost_of
    begin = {name: sorted(gone.get(name, ())) for name in groups}
    there = {name: groups[name].num_units - len(begin[name]) for name in groups}
    now: Units = {name: list(units) for name, units in begin.items()}
    went: list[tuple[str, int]] = []

    def with_unit(name: str, unit: int) -> Units:
        return {**now, name: [*now[name], unit]}

    def next_unit(name: str) -> int:
        left = [unit for unit in range(groups[name].num_units) if unit not in now[name]]
        return min(left, key=lambda unit: (scores[name][unit], unit))

    def taken(names: Sequence[str]) -> int:
        return sum(len(now[name]) - len(begin[name]) for name in names)

    def rank(name: str) -> tuple[float, ...]:
        unit = next_unit(name)
        score = scores[name][unit]
        if allocation == "global":
            return (score,)
        if allocation == "uniform":
            return ((taken([name]) + 0.5) / there[name],)
        if allocation == "isomorphic":
            assert classes is not None
            members = classes[name]
            return ((taken(members) + 0.5) / sum(there[one] for one in members), score)
        if score < 0:
            return (0, score)
        saving = saving_of(now) - saving_of(with_unit(name, unit))
        return (1, score / saving) if saving > 0 else (2, score)

    free = [name for name in groups if cost_of(with_unit(name, next_unit(name))) < cost_of(now)]
    while cost_of(now) > goal:
        open_groups = [name for name in free if groups[name].num_units - len(now[name]) > floors[name]]
        if not open_groups:
            break
        best = min(open_groups, key=rank)
        unit = next_unit(best)
        now[best].append(unit)
        went.append((best, unit))

    full: set[str] = set()
    for name, unit in reversed(went):
        without = {**now, name: [one for one in now[name] if one != unit]}
        if name not in full and scores[name][unit] >= 0 and cost_of(without) <= goal:
            now = without
        else:
            full.add(name)
    return {name: sorted(set(units) - set(begin[name])) for name, units in now.items() if len(units) > len(begin[name])}


def step_floor(left: int, floor: int, share: float) -> int:
    """At most the share of what is left, but one unit always; never below the floor."""
    return max(floor, min(left - math.floor(share * left + 1e-9), left - 1), 1)
