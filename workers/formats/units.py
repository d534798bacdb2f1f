"""What the record of a model says of its prunable units: the dependency groups, what is pinned, and the floor.

    {"groups": [{"name": "layer1.0.conv1", "kind": "channels", "units": 16, "parameters_per_unit": 290,
                 "macs_per_unit": 294912, "bytes_per_unit": 1184, "statistics": false,
                 "tensors": ["layer1.0.conv1.weight", …], "tensors_left_out": 3}, …],
     "groups_left_out": 0,
     "pinned": [{"operator": "linear", "node": "linear", "reason": "…", "channels": 10, "tensors": […], …}, …],
     "pinned_left_out": 0,
     "floor": {"parameters": 344, "macs": 153364, "bytes": 1832}}

A unit's numbers are what the whole network saves when that unit alone goes. The floor is the network with every group
cut down to two units (or one, where it has one), which is as far as any schedule prunes; it is exact, while the lists
end where a record would become too long. Bytes are those of parameters and buffers as they are held.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from service.contract.errors import StillhouseError
from workers.graph.groups import Group, Groups, Pinned, find_groups
from workers.graph.layer_graph import LayerGraph

LEFT_IN_EACH_GROUP = 2  # units
SHOWN_TENSORS = 4  # of one group
GROUPS_BYTES, PINNED_BYTES = 65_536, 16_384  # of JSON, of each list
MOST_NODES = 5_000  # finding groups takes the square of their number: at this many, about a minute

Json = dict[str, Any]


def units_of(graph_of: Callable[[], LayerGraph]) -> tuple[Json | None, list[str]]:
    """The units of the network that `graph_of` gives, as JSON, and notes; None and why, where they are not known.

    Never raises: what cannot be pruned can still teach and learn.
    """
    try:
        network = graph_of()
        if (nodes := len(network.graph.nodes)) > MOST_NODES:
            return None, [f"its units are not listed: its graph has {nodes} nodes, more than {MOST_NODES}"]
        return described(network, find_groups(network)), []
    except Exception as error:  # noqa: BLE001  exporters fail in as many ways as there are networks
        return None, [unknown(error)]


def unknown(error: BaseException) -> str:
    """Why the units of a network are not known; what others than ourselves say may name places of this machine."""
    reason = error.detail if isinstance(error, StillhouseError) else type(error).__name__
    return f"its units are not known, and it cannot be pruned: {reason}"


def described(network: LayerGraph, groups: Groups) -> Json:
    """All that is said of the units of `network`."""
    held = held_tensors(network)
    shown, hidden = listed((group_facts(group, held) for group in groups.values()), GROUPS_BYTES)
    pinned, unpinned = listed(map(pinned_facts, groups.pinned), PINNED_BYTES)
    return {
        "groups": shown,
        "groups_left_out": hidden,
        "pinned": pinned,
        "pinned_left_out": unpinned,
        "floor": floor_of(held, groups),
    }


def listed(facts: Iterable[Json], most_bytes: int) -> tuple[list[Json], int]:
    """As many of the first facts as `most_bytes` of JSON hold, and how many are left out."""
    shown, left_out, used = [], 0, 0
    for fact in facts:
        used += len(json.dumps(fact))
        if used <= most_bytes:
            shown.append(fact)
        else:
            left_out += 1
    return shown, left_out


def group_facts(group: Group, held: Mapping[str, Tensor]) -> Json:
    """One group."""
    return {
        "name": group.name,
        "kind": group.kind,
        "units": group.num_units,
        "parameters_per_unit": group.parameters_per_unit,
        "macs_per_unit": group.macs_per_unit,
        "bytes_per_unit": bytes_per_unit(group, held),
        "statistics": bool(group.statistics),
        **bounded(member.tensor for member in group.members),
    }


def pinned_facts(pinned: Pinned) -> Json:
    """What one operator pins."""
    return {
        "operator": pinned.operator,
        "node": pinned.node,
        "reason": pinned.reason,
        "channels": pinned.num_channels,
        **bounded(pinned.tensors),
    }


def bounded(names: Iterable[str]) -> Json:
    """The first few names of tensors, and how many more there are."""
    different = list(dict.fromkeys(names))
    return {"tensors": different[:SHOWN_TENSORS], "tensors_left_out": max(0, len(different) - SHOWN_TENSORS)}


# Bytes ------------------------------------------------------------------------------------------------------------


def held_tensors(network: LayerGraph) -> dict[str, Tensor]:
    """Parameters and buffers by name, a shared one under its first."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def bytes_per_unit(group: Group, held: Mapping[str, Tensor]) -> int:
    """Bytes of parameters and buffers that go with one unit of `group`."""
    taken: dict[str, Counter[int]] = {}
    for member in group.members:
        if member.tensor in held:
            taken.setdefault(member.tensor, Counter())[member.axis] += member.indices.shape[1]
    return sum(
        (held[name].numel() - math.prod(size - gone[axis] for axis, size in enumerate(held[name].shape)))
        * held[name].element_size()
        for name, gone in taken.items()
    )


def floor_of(held: Mapping[str, Tensor], groups: Groups) -> dict[str, int]:
    """Parameters, MACs and bytes of the network with every group at its last units."""
    selection = {name: range(LEFT_IN_EACH_GROUP, group.num_units) for name, group in groups.items()}
    size, kept, slots = groups.size_without(selection), groups.kept(selection), groups.reading.ledger.slots
    left = sum(
        math.prod(
            int(kept[slots[name, axis]].sum()) if (name, axis) in slots else length
            for axis, length in enumerate(tensor.shape)
        )
        * tensor.element_size()
        for name, tensor in held.items()
    )
    return {"parameters": size.parameters, "macs": size.macs, "bytes": left}
