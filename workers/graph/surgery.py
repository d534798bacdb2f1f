"""Surgery: the network without some of its units.

What comes out is a smaller network of the same kind: shorter parameters and buffers under their old names, layers
with their new sizes, calls with their new numbers. No masks, no wrappers; it trains on and exports as any other.
It computes what the original computes with those units set to zero (see groups.py for means over channels).
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from workers.graph.groups import Groups, find_groups
from workers.graph.labels import Shape
from workers.graph.layer_graph import LayerGraph
from workers.graph.module_tree import own_tensors, tensor_at
from workers.graph.propagation import refresh_shapes
from workers.graph.rewrites import REWRITES, remaining_groups
from workers.graph.sites import OPERATORS, Reading, Site, site_of
from workers.graph.survivors import Survivors
from workers.graph.unit_cost import Kept


def remove(network: LayerGraph, selection: Mapping[str, Sequence[int]], groups: Groups | None = None) -> LayerGraph:
    """A copy of `network` without the selected units; `network` itself stays as it is.

    `groups` are those of `find_groups(network)`, found anew when not given. Raises `ValueError` for a group or unit
    that does not exist, and where nothing would be left of an axis.
    """
    groups = find_groups(network) if groups is None else groups
    kept, ledger = groups.kept(selection), groups.reading.ledger
    check_something_left(kept, groups.reading)
    pruned = copy.deepcopy(network)
    reading = transferred(groups.reading, pruned)
    survivors = Survivors(kept, ledger.slots, reading.values)
    for node in list(pruned.graph.nodes):
        rewrite(site_of(node, reading), survivors)
    shorten_tensors(pruned, survivors)
    pruned.graph.lint()
    pruned.recompile()
    refresh_shapes(pruned)
    return pruned


def check_something_left(kept: Kept, reading: Reading) -> None:
    """`ValueError` where a parameter, a buffer or a value would lose all its channels."""
    for (name, axis), labels in reading.ledger.slots.items():
        if labels.size and not kept[labels].any():
            raise ValueError(f"nothing would be left of axis {axis} of {name}; leave at least one of its units")
    for node, value in reading.values.items():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, np.ndarray) and part.size and not kept[part].any():
                raise ValueError(f"nothing would be left of the channels of {node.name}; leave at least one of them")


def transferred(reading: Reading, copied: LayerGraph) -> Reading:
    """What was read of a network, for a copy of it."""
    nodes = zip(reading.network.graph.nodes, copied.graph.nodes, strict=True)
    values = {copy: reading.values[original] for original, copy in nodes if original in reading.values}
    return Reading(copied, reading.ledger, values)


def rewrite(site: Site, survivors: Survivors) -> None:
    """Bring what one call says about sizes up to date."""
    if site.node.op == "call_module":
        layer = site.reading.network.get_submodule(str(site.node.target))
        if type(layer) in OPERATORS:
            set_layer_sizes(layer, site, survivors)
    elif site.operator in REWRITES:
        REWRITES[site.operator](site, survivors)


# Layers -----------------------------------------------------------------------------------------------------------


def set_layer_sizes(layer: nn.Module, site: Site, survivors: Survivors) -> None:
    """The sizes that a layer remembers beside its tensors."""
    before, after = survivors.shape(site, site.source), survivors.shape(site, site.node)
    sizes: dict[str, object] = dict(LAYER_SIZES.get(site.operator, no_sizes)(before, after))
    for name in ("groups", "num_groups"):
        if name in site.arguments:
            sizes[name] = remaining_groups(site, survivors, name)
    if "normalized_shape" in site.arguments:
        sizes["normalized_shape"] = after[len(after) - len(site.arguments["normalized_shape"]) :]
    for name, size in sizes.items():
        setattr(layer, name, size)


LayerSizes = Callable[[Shape, Shape], dict[str, int]]


def no_sizes(_before: Shape, _after: Shape) -> dict[str, int]:
    return {}


def convolution_sizes(spatial: int) -> LayerSizes:
    """Of a convolution over so many axes."""
    return lambda before, after: {"in_channels": before[-spatial - 1], "out_channels": after[-spatial - 1]}


# Operator -> a layer's attributes, from the shapes of its input and output.
LAYER_SIZES: dict[str, LayerSizes] = {
    "linear": lambda before, after: {"in_features": before[-1], "out_features": after[-1]},
    **{f"conv{spatial}d": convolution_sizes(spatial) for spatial in (1, 2, 3)},
    **{f"conv_transpose{spatial}d": convolution_sizes(spatial) for spatial in (1, 2, 3)},
    "batch_norm": lambda before, _: {"num_features": before[1]},
    "instance_norm": lambda before, _: {"num_features": before[1]},
    "group_norm": lambda before, _: {"num_channels": before[1]},
    "embedding": lambda _, after: {"embedding_dim": after[-1]},
}


# Tensors ----------------------------------------------------------------------------------------------------------


def shorten_tensors(pruned: nn.Module, survivors: Survivors) -> None:
    """Cut every parameter and buffer down to what survives, wherever it stands."""
    shortened: dict[int, Tensor] = {}
    for (name, axis), labels in survivors.slots.items():
        stays = survivors.kept[labels]
        if not stays.all():
            tensor = tensor_at(pruned, name)
            current = shortened.get(id(tensor), tensor)
            shortened[id(tensor)] = shorten(current, axis, stays)
    for module in pruned.modules():
        for leaf, standing in own_tensors(module).items():
            if id(standing) in shortened:
                setattr(module, leaf, shortened[id(standing)])
        if isinstance(module, nn.PReLU):
            module.num_parameters = module.weight.numel()


def shorten(tensor: Tensor, axis: int, stays: np.ndarray) -> Tensor:
    """The indices that stay along one axis, as a tensor of the same kind."""
    indices = torch.from_numpy(np.flatnonzero(stays)).to(tensor.device)
    values = tensor.detach().index_select(axis, indices)
    return nn.Parameter(values, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values
