"""The criteria by their definitions, word for word: one full forward pass for each unit, one example at a time for
gradients, entropies as sums.

Nothing is shared with what is tested but the read edges: where units are read is where they are replaced.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.graph.groups import Groups
from workers.graph.layer_graph import LayerGraph
from workers.pruning.reads import Read, ReadingRun

Reads = Mapping[str, tuple[Read, ...]]
Stands = dict[tuple[str, str], tuple[Tensor, Tensor]]  # (group, source) -> mean (channels,), covariance


# What stands in ---------------------------------------------------------------------------------------------------


def channels(read: Read, value: Tensor) -> Tensor:
    """The group's channels as columns of a table of all examples and positions: (places, channels)."""
    flat = read.indices[read.present].reshape(-1).tolist()
    return torch.stack([value.select(read.axis, index).reshape(-1) for index in flat], 1)


def statistics(network: LayerGraph, groups: Groups, reads: Reads, x: Tensor) -> Stands:
    """Mean and covariance of the group's channels at every source, over all inputs at once.

    Where a norm takes the mean over the group's channels, a direction without variance is given the mean variance.
    """
    found: Stands = {}

    def listen(read: Read, value: Tensor) -> Tensor:
        table = channels(read, value).double()
        mean = table.mean(0)
        covariance = (table - mean).T @ (table - mean) / len(table)
        if groups[read.group].statistics:
            variances, directions = torch.linalg.eigh(covariance)
            for variance, direction in zip(variances, directions.T, strict=True):
                if variance < 1e-5 * variances.mean():
                    covariance = covariance + variances.mean() * torch.outer(direction, direction)
        found[read.group, read.source.name] = mean, covariance
        return value

    with torch.no_grad():
        ReadingRun(network, reads, listen).run(x)
    return found


def removed(read: Read, value: Tensor, unit: int, ablation: str, stands: Stands, ridge: float = 1e-3) -> Tensor:
    """r of one unit: its value, or that less its mean, or less its ridge regression on the group's other channels.

    The regression is solved for this unit alone: β minimises E|x̃_U − βᵀ x̃_others|² + λ·mean(diag C)·|β|².
    """
    mine = read.indices[unit].tolist()
    taken = torch.stack([value.select(read.axis, index) for index in mine])
    if ablation == "zero":
        return taken
    mean, covariance = stands[read.group, read.source.name]
    flat = read.indices[read.present].reshape(-1).tolist()
    own = [flat.index(index) for index in mine]
    centred = taken - mean[own].to(value).reshape(-1, *[1] * (taken.dim() - 1))
    if ablation == "mean":
        return centred
    others = [place for place in range(len(flat)) if place not in own]
    added = ridge * covariance.diagonal().mean() * torch.eye(len(flat), dtype=torch.float64)
    ridged = covariance + added
    predicted = torch.zeros_like(centred)
    if others:
        beta = torch.linalg.solve(ridged[others][:, others], covariance[others][:, own])
        table = (channels(read, value) - mean.to(value))[:, others]
        predicted = (table @ beta.to(value)).T.reshape(centred.shape)
    return centred - predicted


def ablated_outputs(
    network: LayerGraph, reads: Reads, x: Tensor, group: str, unit: int, ablation: str, stands: Stands
) -> Tensor:
    """A full forward pass in which every reader is given x_U − r_U."""

    def listen(read: Read, value: Tensor) -> Tensor:
        if read.indices[unit, 0] < 0:
            return value
        replaced = value.clone()
        for index, part in zip(read.indices[unit].tolist(), removed(read, value, unit, ablation, stands), strict=True):
            replaced.select(read.axis, index).sub_(part)
        return replaced

    with torch.no_grad():
        return ReadingRun(network, {group: reads[group]}, listen).outputs(x)


def each_unit(groups: Groups, measure: Callable[[str, int], float]) -> dict[str, Tensor]:
    return {
        name: torch.tensor([measure(name, unit) for unit in range(group.num_units)], dtype=torch.float64)
        for name, group in groups.items()
    }


# The Jacobian -----------------------------------------------------------------------------------------------------


def logit_change(
    network: LayerGraph, reads: Reads, x: Tensor, group: str, unit: int, ablation: str, stands: Stands
) -> Tensor:
    """J_u, (B, K): the derivative of −y by t at 0 where every reader is given x − t·r, one example and class at a time.

    Under zero ablation the second factor of a product with itself keeps its value.
    """
    rows = []
    for example in range(len(x)):
        scale = torch.zeros((), dtype=torch.float64, requires_grad=True)

        def listen(read: Read, value: Tensor, scale: Tensor = scale) -> Tensor:
            if read.indices[unit, 0] < 0 or (read.again and ablation == "zero"):
                return value
            change = torch.zeros_like(value)
            with torch.no_grad():
                parts = removed(read, value.detach(), unit, ablation, stands)
                for index, part in zip(read.indices[unit].tolist(), parts, strict=True):
                    change.select(read.axis, index).copy_(part)
            return value - scale.to(value) * change

        y = ReadingRun(network, {group: reads[group]}, listen).outputs(x[example : example + 1])[0]
        rows.append([derivative(-logit, scale) for logit in y])
    return torch.tensor(rows, dtype=x.dtype if x.is_floating_point() else torch.float64)


def derivative(y: Tensor, by: Tensor) -> float:
    found = torch.autograd.grad(y, by, retain_graph=True, allow_unused=True)[0] if y.requires_grad else None
    return 0.0 if found is None else float(found)


# Measures of outputs, one example at a time -------------------------------------------------------------------------


def distribution(logits: Tensor, temperature: float = 1.0) -> list[float]:
    z = [float(value) / temperature for value in logits]
    top = max(z)
    weights = [math.exp(value - top) for value in z]
    return [weight / sum(weights) for weight in weights]


def entropy(p: list[float]) -> float:
    return -sum(value * math.log(value) for value in p if value > 0)


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def standard_error(values: list[float]) -> float:
    middle = mean(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1) / len(values))


def average(ps: list[list[float]]) -> list[float]:
    return [mean(list(column)) for column in zip(*ps, strict=True)]


def kl_changes(t: Tensor, base: Tensor, without: Tensor, temperature: float) -> list[float]:
    """KL(t ‖ p_i) − KL(t ‖ p) of every example."""
    rows = zip(*([distribution(z, temperature) for z in y] for y in (t, base, without)), strict=True)
    return [divergence(p, q) - divergence(p, before) for p, before, q in rows]


def marginal_entropy(logits: Tensor) -> float:
    return entropy(average([distribution(row) for row in logits]))


def predictive_entropy(logits: Tensor) -> float:
    return mean([entropy(distribution(row)) for row in logits])


def information(logits: Tensor) -> float:
    return marginal_entropy(logits) - predictive_entropy(logits)


def losses(logits: Tensor, labels: Tensor) -> list[float]:
    return [-math.log(distribution(row)[int(label)]) for row, label in zip(logits, labels, strict=True)]


def marginal_influences(logits: Tensor) -> list[float]:
    """CE(p, p̄) of every example: to first order what it adds to H(p̄)."""
    ps = [distribution(row) for row in logits]
    middle = average(ps)
    return [-sum(a * math.log(b) for a, b in zip(p, middle, strict=True)) for p in ps]


# Binned activations and weights -------------------------------------------------------------------------------------


def pooled_activations(network: LayerGraph, read: Read, x: Tensor) -> Tensor:
    """The mean of each unit over positions and indices at one read, one example at a time: (N, units)."""
    rows: list[list[float]] = []

    def listen(_: Read, value: Tensor) -> Tensor:
        rows.append([
            float(torch.stack([value.select(read.axis, i) for i in read.indices[unit].tolist()]).mean())
            for unit in read.present
        ])  # fmt: skip
        return value

    with torch.no_grad():
        for example in range(len(x)):
            ReadingRun(network, {read.group: (read,)}, listen).run(x[example : example + 1])
    return torch.tensor(rows)


def bins_of(values: np.ndarray, bins: int) -> np.ndarray:
    low, high = values.min(), values.max()
    edges = [low + (high - low) * k / bins for k in range(1, bins)]
    return np.array([sum(value >= edge for edge in edges) for value in values])


def counts_entropy(symbols: Any) -> float:
    _, counts = np.unique(np.asarray(symbols), return_counts=True, axis=0)
    return entropy([count / counts.sum() for count in counts])


def num_symbols(symbols: Any) -> int:
    return len(np.unique(np.asarray(symbols), axis=0))


def corrected_information(a: np.ndarray, y: np.ndarray) -> float:
    """H(A) + H(Y) − H(A,Y), each with (m − 1)/2N added."""
    pairs = np.stack([a, y], 1)
    return sum(
        sign * (counts_entropy(symbols) + (num_symbols(symbols) - 1) / (2 * len(a)))
        for sign, symbols in ((1, a), (1, y), (-1, pairs))
    )
