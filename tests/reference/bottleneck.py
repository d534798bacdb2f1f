"""VIBNet's loss by its formula: one example at a time, one unit at a time, one read at a time.

Nothing is shared with what is tested but the read edges.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from workers.graph.groups import Groups
from workers.graph.layer_graph import LayerGraph
from workers.pruning.reads import Read, ReadingRun

Units = Mapping[str, Tensor]  # group -> (units,), or (B, units)


def gated_outputs(network: LayerGraph, reads: Mapping[str, tuple[Read, ...]], example: Tensor, gates: Units) -> Tensor:
    """The outputs on one example, (K,), with z_u · h_u for h_u at every read; of a product, at its first factor."""

    def listen(read: Read, value: Tensor) -> Tensor:
        if read.again:
            return value
        parts = list(value.unbind(read.axis))
        for unit, indices in enumerate(read.indices.tolist()):
            for index in indices:
                if index >= 0:
                    parts[index] = parts[index] * gates[read.group][unit]
        return torch.stack(parts, read.axis)

    return ReadingRun(network, reads, listen).outputs(example[None])[0]


def step_loss(
    network: LayerGraph,
    groups: Groups,
    reads: Mapping[str, tuple[Read, ...]],
    x: Tensor,
    targets: Tensor,  # (B,) labels, or (B, K) logits
    mean: Units,
    log_variance: Units,
    noise: Units,
    beta: float,
) -> Tensor:
    """mean over examples of the loss + β Σ_u c_u · ½ log(1 + μ_u²/σ_u²)."""
    losses = []
    for row in range(len(x)):
        gates = {
            name: torch.stack([
                mean[name][unit] + math.e ** (log_variance[name][unit] / 2) * noise[name][row, unit]
                for unit in range(group.num_units)
            ])
            for name, group in groups.items()
        }  # fmt: skip
        log_q = torch.log_softmax(gated_outputs(network, reads, x[row], gates), 0)
        if targets.dim() == 1:
            losses.append(-log_q[int(targets[row])])
        else:
            p = torch.softmax(targets[row], 0)
            losses.append(sum(p[k] * (torch.log(p[k]) - log_q[k]) for k in range(len(p))))
    total_macs = sum(group.macs_per_unit * group.num_units for group in groups.values())
    penalty = sum(
        group.macs_per_unit / total_macs * torch.log(1 + mean[name][unit] ** 2 / math.e ** log_variance[name][unit]) / 2
        for name, group in groups.items()
        for unit in range(group.num_units)
    )
    return sum(losses) / len(losses) + beta * penalty
