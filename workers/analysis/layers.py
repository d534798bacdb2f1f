"""The part of a report that says what the layers of a model hold."""

from collections.abc import Mapping

import torch
from torch import Tensor

from service.contract.analysis import GroupActivity, Layers, PairInformation, Redundancy
from workers.analysis.activity import Activity, Pairs
from workers.analysis.listing import Room, rounded, unit_values
from workers.graph.groups import Group, Groups

MOST_DEAD = 100  # that are named


def layers(
    groups: Groups, found: Mapping[str, Activity], *, split: str, examples: int, bins: int, room: Room
) -> Layers:
    """All groups; those that no input reaches say so."""
    return Layers(
        split=split,
        examples=examples,
        bins=bins,
        groups=tuple(group_activity(group, found.get(name), room) for name, group in groups.items()),
    )


def group_activity(group: Group, activity: Activity | None, room: Room) -> GroupActivity:
    """One group."""
    facts = {
        "name": group.name,
        "kind": group.kind,
        "units": group.num_units,
        "macs_per_unit": group.macs_per_unit,
        "parameters_per_unit": group.parameters_per_unit,
    }
    if activity is None:
        return GroupActivity.model_validate(facts)
    listed = room.takes(activity.entropy, activity.label_information, activity.explained)
    dead = activity.dead.nonzero().flatten().tolist()
    return GroupActivity.model_validate(
        facts
        | {
            "reader": activity.reader,
            "dead": len(dead),
            "dead_units": tuple(dead[:MOST_DEAD]),
            "entropy": unit_values(activity.entropy, listed=listed),
            "label_information": unit_values(activity.label_information, listed=listed),
            "label_information_chance": optional(activity.label_chance),
            "redundancy": Redundancy(
                explained=unit_values(activity.explained, listed=listed),
                chance=optional(activity.explained_chance),
                rows=activity.rows,
                pairs=None if activity.pairs is None else pair_information(activity.pairs),
            ),
        }
    )


def pair_information(pairs: Pairs) -> PairInformation:
    """What pairs of units share."""
    largest = int(pairs.information.argmax())
    one, other = pairs.chosen[largest].tolist()
    return PairInformation(
        pairs=len(pairs.chosen),
        possible=pairs.possible,
        bins=pairs.bins,
        mean=mean(pairs.information),
        chance=mean(pairs.chance),
        largest=rounded(float(pairs.information[largest])),
        most_alike=(one, other),
    )


def mean(values: Tensor) -> float:
    """To as many digits as a report gives."""
    return rounded(float(torch.mean(values)))


def optional(value: float | None) -> float | None:
    """The same, where it is known."""
    return None if value is None else rounded(value)
