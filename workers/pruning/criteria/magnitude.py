"""Scores that look at weights alone, and the random order. High means keep; no inputs are needed.

    l1, l2             a unit's layers are all that hold a slice of it: weights that make it (their output axis),
                       weights that read it (their input axis), scales of batch norms and layer norms it passes.
                       Each gives Σ |w|^p over the unit's slice; the mean over layers, divided by the group's mean.
    batchnorm_scale    the mean of |γ| over the unit's batch norms, divided by the group's mean (Liu et al. 2017)
    random             uniform on (0, 1), by the seed

This is what Torch-Pruning 1.6.1 computes as GroupMagnitudeImportance(p, group_reduction="mean", normalizer="mean"),
biases left out: for p = 2 squares are summed and no root is taken. As there, a depthwise convolution's filters do not
count (they are neither an output nor an input of a mixing layer), nor do embeddings and free parameters. A unit of
several indices has their sum. Division by the mean makes groups comparable in scale, though not in meaning.

Sources: Li et al. 2017; Fang et al. 2023 (DepGraph), which groups.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from workers.graph.groups import Group, Groups, Member
from workers.graph.layer_graph import LayerGraph
from workers.graph.module_tree import tensor_at
from workers.pruning.scores import Scores

CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
WEIGHED = (nn.Linear, *CONVOLUTIONS, *BATCH_NORMS, nn.LayerNorm)


def magnitude(network: LayerGraph, groups: Groups, power: Literal[1, 2]) -> Scores:
    """l1 (power 1) or l2 (power 2) of every unit."""
    return Scores({name: group_magnitude(network, group, power) for name, group in groups.items()})


def group_magnitude(network: LayerGraph, group: Group, power: Literal[1, 2]) -> Tensor:
    """Mean over layers of Σ |w|^p, by the group's mean: (units,) float64; ones where no layer counts."""
    members = [member for member in group.members if counts(network, member)]
    return normalised([slice_power(network, member, power) for member in members], group.num_units)


def batchnorm_scale(network: LayerGraph, groups: Groups) -> Scores:
    """|γ| of every unit; a group without batch norms is judged by l2, and named in the notes."""
    values, without = {}, []
    for name, group in groups.items():
        scales = [member for member in group.members if is_scale(network, member)]
        if scales:
            values[name] = normalised([slice_power(network, member, 1) for member in scales], group.num_units)
        else:
            values[name] = group_magnitude(network, group, 2)
            without.append(name)
    notes = (f"These groups have no batch norm, and were judged by l2: {', '.join(without)}.",) if without else ()
    return Scores(values, notes=notes)


def random_order(groups: Groups, seed: int) -> Scores:
    """Uniform on (0, 1) for every unit."""
    generator = torch.Generator().manual_seed(seed)
    return Scores(
        {name: torch.rand(group.num_units, generator=generator, dtype=torch.float64) for name, group in groups.items()}
    )


def holder(network: LayerGraph, member: Member) -> tuple[nn.Module, str]:
    """The module that holds a member's tensor, and its name there."""
    module, _, leaf = member.tensor.rpartition(".")
    return network.get_submodule(module), leaf


def counts(network: LayerGraph, member: Member) -> bool:
    """Whether a member is among the weights of l1 and l2."""
    module, leaf = holder(network, member)
    depthwise = isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.in_channels == module.out_channels
    return leaf == "weight" and isinstance(module, WEIGHED) and not depthwise


def is_scale(network: LayerGraph, member: Member) -> bool:
    """Whether a member is the scale of a batch norm."""
    module, leaf = holder(network, member)
    return leaf == "weight" and isinstance(module, BATCH_NORMS)


def slice_power(network: LayerGraph, member: Member, power: int) -> Tensor:
    """Σ |w|^p over what each unit holds of one axis of one tensor: (units,) float64, on the CPU."""
    weight = tensor_at(network, member.tensor).detach().double().abs().pow(power)
    others = [axis for axis in range(weight.dim()) if axis != member.axis]
    by_index = weight.sum(others) if others else weight
    return by_index.cpu()[torch.from_numpy(member.indices)].sum(1)


def normalised(layers: list[Tensor], num_units: int) -> Tensor:
    """The mean over layers, by its mean over units: (units,); ones where there is nothing to compare."""
    mean = torch.stack(layers).mean(0) if layers else torch.zeros(num_units, dtype=torch.float64)
    scale = mean.mean()
    return mean / scale if scale > 0 else torch.ones_like(mean)
