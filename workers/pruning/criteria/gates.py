"""Scores from the derivatives by a gate on each unit: g_i multiplies the unit wherever it is read, and is 1.

    taylor              E (∂L/∂g_i)², L the cross-entropy with the label
                        Molchanov et al. 2019, equation 9, with the gates of its section 3.2; one backward pass
    output_kl_fisher    ½ E Σ_k p_k (∂log p_k/∂g_i)²
                        Theis et al. 2018, with the model's own distribution in place of the labels; one backward
                        pass for each class, or for each random probe (see linearised.py)

∂y/∂g_i = Σ over reads and positions of ∂y/∂x_i · x_i, which is J_i under zero ablation (sensitivity.py). So
output_kl_fisher is the second-order term of output_kl under zero ablation at temperature 1. High means keep.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from workers.graph.groups import Groups
from workers.graph.layer_graph import LayerGraph
from workers.journal import Journal
from workers.pruning.calibration import Batch, Calibration
from workers.pruning.criteria.linearised import Probes, followed, mean_scores, num_probes, probed
from workers.pruning.criteria.sensitivity import Responses, every_class, responses
from workers.pruning.labels import required_labels
from workers.pruning.moments import Moments
from workers.pruning.reads import Read
from workers.pruning.replacement import Replacement
from workers.pruning.scores import Scores

GATED = Replacement("zero", {})


def taylor(
    network: LayerGraph,
    groups: Groups,
    reads: Mapping[str, tuple[Read, ...]],
    calibration: Calibration,
    *,
    memory_bytes: int,
    journal: Journal,
) -> Scores:
    """E (∂L/∂g_i)²; raises `Invalid` for unlabelled data."""
    required_labels(calibration, "taylor")
    moments = {name: Moments(group.num_units) for name, group in groups.items()}
    stream = responses(network, groups, reads, calibration, GATED, loss_gradient, passes=1, memory_bytes=memory_bytes)
    for answer in followed(stream, len(calibration), journal):
        for name, response in answer.by_group.items():
            moments[name].update(response[0].square())
    return mean_scores(moments, len(calibration))


def loss_gradient(batch: Batch, logits: Tensor) -> Tensor:
    """∂L/∂y = p − e_label of every example: (1, B, K)."""
    assert batch.labels is not None  # noqa: S101  required_labels has seen to it
    p = torch.softmax(logits, -1)
    return (p - one_hot(batch.labels, p.shape[1]).to(p))[None]


def output_kl_fisher(
    network: LayerGraph,
    groups: Groups,
    reads: Mapping[str, tuple[Read, ...]],
    calibration: Calibration,
    *,
    probes: int | None,
    seed: int,
    memory_bytes: int,
    journal: Journal,
) -> Scores:
    """½ E Σ_k p_k (∂log p_k/∂g_i)², by all classes or by `probes`."""
    count = num_probes(network, probes)
    directions = every_class if count is None else Probes(count, 1.0, seed, None)
    passes = network.outputs[0].example_shape[-1] if count is None else count
    moments = {name: Moments(group.num_units) for name, group in groups.items()}
    stream = responses(network, groups, reads, calibration, GATED, directions, passes=passes, memory_bytes=memory_bytes)
    for answer in followed(stream, len(calibration), journal):
        for name, response in answer.by_group.items():
            moments[name].update(fisher(answer, response) if count is None else probed(response, count, 1.0))
    return mean_scores(moments, len(calibration))


def fisher(answer: Responses, jacobian: Tensor) -> Tensor:
    """½ Σ_k p_k (J_k − Σ_j p_j J_j)² of every example: (K, B, units) -> (B, units)."""
    p = torch.softmax(answer.logits, -1).T[..., None]
    centred = jacobian - (p * jacobian).sum(0)
    return (p * centred.square()).sum(0) / 2
