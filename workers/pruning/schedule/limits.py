"""How few units a group may be left with: by number, by name, and in multiples that suit the hardware."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from service.contract.errors import Invalid
from workers.graph.groups import Group, Groups


@dataclass(frozen=True)
class Limits:
    """What holds for the network that comes out, in units of the teacher's groups.

    Where units go from a group, a multiple of `round_to` is left; groups that have fewer units to begin with (the
    heads of an attention) are not held to it.
    """

    min_units: int = 2
    keep: Mapping[str, int] = field(default_factory=dict)  # group -> units that it keeps at least
    round_to: int = 1

    def quantum(self, group: Group) -> int:
        """What the number of units left is a multiple of."""
        return self.round_to if group.num_units >= self.round_to else 1

    def floor(self, group: Group) -> int:
        """The fewest units that a group may be left with."""
        least = max(self.min_units, self.keep.get(group.name, 1))
        quantum = self.quantum(group)
        return min(-(-least // quantum) * quantum, group.num_units)

    def below(self, group: Group, left: int) -> int:
        """The next smaller number of units that a group with `left` units may have; `left` where there is none."""
        quantum = self.quantum(group)
        smaller = (left - 1) // quantum * quantum
        return smaller if smaller >= self.floor(group) else left

    def lowest(self, group: Group) -> int:
        """The fewest units that removing whole blocks leaves; all of them where no block can go."""
        return self.floor(group) if self.below(group, group.num_units) < group.num_units else group.num_units

    def step_floor(self, group: Group, left: int, max_share: float) -> int:
        """The fewest units after a step that takes at most `max_share` of those left, or as little as can be taken."""
        by_share = left - int(max_share * left + 1e-9)
        return max(self.floor(group), min(by_share, self.below(group, left)))


def check_keep(groups: Groups, keep: Mapping[str, int]) -> None:
    """Raise `Invalid` where `keep` names a group that the network does not have, or more units than it has."""
    for name, units in keep.items():
        if name not in groups:
            known = ", ".join(groups) or "none"
            raise Invalid(f"keep names the group {name!r}, which the model does not have; its groups are: {known}")
        if units > groups[name].num_units:
            raise Invalid(f"keep asks for {units} units of {name}, which has {groups[name].num_units}")
