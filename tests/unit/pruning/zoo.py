"""Networks of the zoo as graphs, with their groups; and stand-ins for what judges and repairs them."""

import functools

import numpy as np
import torch

from tests.architectures import exported
from workers.formats.pt2_reader import read_pt2
from workers.graph.groups import Groups, find_groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.lifting import lift
from workers.pruning.schedule.account import CostLayout
from workers.pruning.scores import Scores


@functools.cache
def network_of(name: str) -> LayerGraph:
    return lift(read_pt2(exported(name)))


@functools.cache
def groups_of(name: str) -> Groups:
    return find_groups(network_of(name))


@functools.cache
def layout_of(name: str) -> CostLayout:
    return CostLayout(groups_of(name))


def random_scores(groups: Groups, seed: int = 0, *, negative: float = 0.0) -> Scores:
    """Scores between 0 and 1, about a share of them lowered below zero, with errors of 0.01."""
    generator = torch.Generator().manual_seed(seed)
    values, errors = {}, {}
    for name, group in groups.items():
        drawn = torch.rand(group.num_units, generator=generator, dtype=torch.float64)
        below = torch.rand(group.num_units, generator=generator) < negative
        values[name] = torch.where(below, drawn - 1.0, drawn)
        errors[name] = torch.full((group.num_units,), 0.01, dtype=torch.float64)
    return Scores(values, errors, examples=64)


def l2_scores(network: LayerGraph, groups: Groups) -> Scores:
    """The norm of what a unit holds of all parameters, by the mean over its group's units: quick and never random."""
    parameters = dict(network.named_parameters())
    values, errors = {}, {}
    for name, group in groups.items():
        squares = torch.zeros(group.num_units, dtype=torch.float64)
        for member in group.members:
            if member.tensor in parameters:
                tensor = parameters[member.tensor].detach().double().movedim(member.axis, 0)
                chosen = tensor[torch.from_numpy(np.asarray(member.indices))]
                squares += chosen.square().reshape(group.num_units, -1).sum(1)
        norm = squares.sqrt()
        values[name] = norm / norm.mean()
        errors[name] = torch.full_like(norm, 0.01)
    return Scores(values, errors, examples=64)
