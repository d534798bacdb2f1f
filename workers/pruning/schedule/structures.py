"""Groups of the same structure: those around whose units stand the same kinds of layers.

Isomorphic Pruning (Fang et al. 2024) compares units only among groups whose sub-graphs are isomorphic, since
importances of different structures have different scales. Here two groups are of one class where they are of the
same kind (channels, heads, head width) and hold the same axes of the same kinds of layers, each as often: the first
layers of all residual blocks are a class, and so are the heads of all attentions. Sizes do not matter.
"""

from collections import Counter

from workers.graph.groups import Group, Groups
from workers.graph.module_tree import module_at, split_name

Structure = tuple[str, tuple[tuple[tuple[str, str, int], int], ...]]


def structure(group: Group, groups: Groups) -> Structure:
    """The kind of a group, and (kind of layer, tensor, axis) of what it holds, with how many there are of each."""
    network = groups.reading.network
    held: Counter[tuple[str, str, int]] = Counter()
    for member in group.members:
        layer, leaf = split_name(member.tensor)
        held[type(module_at(network, layer)).__name__, leaf, member.axis] += 1
    return group.kind, tuple(sorted(held.items()))


def classes(groups: Groups) -> dict[str, tuple[str, ...]]:
    """For every group the groups of its class, itself among them."""
    members: dict[Structure, list[str]] = {}
    structures = {name: structure(group, groups) for name, group in groups.items()}
    for name, found in structures.items():
        members.setdefault(found, []).append(name)
    return {name: tuple(members[found]) for name, found in structures.items()}
