"""The refit by its formula: all of X and Z in one piece, plain solves in float64, a full run for every layer.

    Wᵀ = (cov X + λ·mean(diag cov X)·I)⁻¹ cov(X, Z),    b = z̄ − W x̄

X is found without a word about kernels and strides: what a layer says is linear in its weight, so the column of X
that belongs to one entry of the weight is what the layer says with a 1 there and zeros elsewhere.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from workers.graph.layer_graph import LayerGraph

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Step:
    """One layer of the student: by name, what it reads, and what it is to say."""

    layer: str
    source: str  # the student's node that it reads
    aim: str  # the teacher's node that it is to give
    outputs: list[int] | None = None  # which channels of that remain; all by default
    norm: str | None = None
    other: str | None = None  # the student's node that is added to it


def run(network: LayerGraph, x: Tensor) -> dict[str, Any]:
    """What every node gives."""

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            found[n.name] = super().run_node(n)
            return found[n.name]

    found: dict[str, Any] = {}
    Recorder(network).run(x)
    return found


@torch.no_grad()
def refit(teacher: LayerGraph, student: LayerGraph, steps: list[Step], x: Tensor, ridge: float) -> None:
    """Refit the layers of `steps`, one after another, in place."""
    taught = run(teacher, x)
    for step in steps:
        seen = run(student, x)
        layer = student.get_submodule(step.layer)
        axis = -1 if isinstance(layer, nn.Linear) else 1
        Z = taught[step.aim]
        Z = Z if step.outputs is None else Z.index_select(axis, torch.tensor(step.outputs))
        Z = Z if step.other is None else Z - seen[step.other]
        Z = Z.movedim(axis, -1).flatten(0, -2).double()
        norm = None if step.norm is None else student.get_submodule(step.norm)
        intercept = layer.bias is not None or norm is not None
        for output in range(Z.shape[1]):
            X = design(layer, seen[step.source], output)
            w, b = solution(X, Z[:, output], ridge, intercept=intercept)
            write(layer, output, w, b)
            if norm is not None:
                rewrite(norm, output, X, w, b)
                if layer.bias is not None:
                    layer.bias[output] = 0


def solution(X: Tensor, z: Tensor, ridge: float, *, intercept: bool) -> tuple[Tensor, Tensor]:
    """The formula, for one output; about zero where there is no intercept."""
    x_mean, z_mean = (X.mean(0), z.mean(0)) if intercept else (torch.zeros_like(X[0]), torch.zeros_like(z[0]))
    cov_X = (X - x_mean).T @ (X - x_mean) / len(X)
    cov_Xz = (X - x_mean).T @ (z - z_mean) / len(X)
    w = torch.linalg.inv(cov_X + ridge * cov_X.diag().mean() * torch.eye(len(cov_X), dtype=torch.float64)) @ cov_Xz
    return w, z_mean - w @ x_mean


def design(layer: nn.Module, x: Tensor, output: int) -> Tensor:
    """X for one output channel: rows by entries of its part of the weight; float64."""
    probe = copy.deepcopy(layer).double()
    if probe.bias is not None:
        probe.bias.zero_()
    axis = -1 if isinstance(layer, nn.Linear) else 1
    columns = []
    for index in entries(probe, output):
        probe.weight.zero_()
        probe.weight[index] = 1
        columns.append(probe(x.double()).movedim(axis, -1)[..., output].flatten())
    return torch.stack(columns, 1)


def entries(layer: nn.Module, output: int) -> Iterator[tuple[int, ...]]:
    """The places in the weight that one output channel depends on."""
    if isinstance(layer, TRANSPOSED):
        inputs, of_group, *kernel = layer.weight.shape
        per_group = inputs // layer.groups
        first = output // of_group * per_group
        for channel in range(first, first + per_group):
            yield from (
                (channel, output % of_group, *place)
                for place in torch.cartesian_prod(*map(torch.arange, kernel)).reshape(-1, len(kernel)).tolist()
            )
    else:
        shape = layer.weight.shape[1:]
        yield from (
            (output, *place)
            for place in torch.cartesian_prod(*map(torch.arange, shape)).reshape(-1, len(shape)).tolist()
        )


def write(layer: nn.Module, output: int, w: Tensor, b: Tensor) -> None:
    """Put the solution where it belongs."""
    for index, value in zip(entries(layer, output), w, strict=True):
        layer.weight[index] = value
    if layer.bias is not None:
        layer.bias[output] = b


def rewrite(norm: nn.Module, output: int, X: Tensor, w: Tensor, b: Tensor) -> None:
    """mean = W·ā, var = diag(W cov(A) Wᵀ), γ = √(var+ε), β = b + W·ā."""
    mean, var = (X @ w).mean(), (X @ w).var(correction=0)
    norm.running_mean[output], norm.running_var[output] = mean, var
    norm.weight[output], norm.bias[output] = (var + norm.eps).sqrt(), b + mean
