"""Linearised output scores: what the outputs would be without each unit, by their gradient.

With y the logits, J_u as in sensitivity.py, and both distributions at temperature T:

    reference current    s_u = E KL(softmax(y/T) ‖ softmax((y − J_u)/T))
    reference teacher    s_u = E [KL(t ‖ softmax((y − J_u)/T)) − KL(t ‖ softmax(y/T))],  t = softmax(teacher/T)

The first is never negative; the second is where a unit does harm.

With many classes, a few random probes stand for all of them. With p = softmax(y/T), F = diag(p) − ppᵀ and independent
signs ε_mk = ±1 for every example,

    v_m = Σ_k ε_mk √p_k (e_k − p)        (e_k − p is ∂log p_k/∂y·T)

has E v_m v_mᵀ = Σ_k p_k (e_k − p)(e_k − p)ᵀ = F. So ½ mean_m (v_m·J_u)²/T² is an unbiased estimate of ½ J_uᵀ F J_u/T²,
which is KL(softmax(y/T) ‖ softmax((y − J_u)/T)) to second order in J_u. For a teacher, the first-order part
(t − p)·J_u/T is added, which takes one more pass.

All in nats.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from workers.graph.groups import Groups
from workers.graph.layer_graph import LayerGraph
from workers.information.divergence import divergence_terms
from workers.journal import Journal
from workers.pruning.calibration import Batch, Calibration
from workers.pruning.criteria.sensitivity import Responses, every_class, responses
from workers.pruning.moments import Moments
from workers.pruning.reads import Read
from workers.pruning.replacement import Replacement
from workers.pruning.scores import Scores

MANY_CLASSES = 64  # beyond it, probes
PROBES = 8
CHUNK_BYTES = 2**24  # of (B, units, K), which are compared at a time


def linearised_kl(
    network: LayerGraph,
    groups: Groups,
    reads: Mapping[str, tuple[Read, ...]],
    calibration: Calibration,
    replacement: Replacement,
    *,
    temperature: float,
    reference: Tensor | None,
    probes: int | None,
    seed: int,
    memory_bytes: int,
    journal: Journal,
) -> Scores:
    """s_u of every unit, with its standard error over the examples.

    `reference` are a teacher's logits on the calibration inputs, (N, K), or None for the network's own. `probes` is how
    many stand for the classes; None: as many as `num_probes` says.
    """
    count = num_probes(network, probes)
    moments = {name: Moments(group.num_units) for name, group in groups.items()}
    directions = every_class if count is None else Probes(count, temperature, seed, reference)
    passes = network.outputs[0].example_shape[-1] if count is None else count + (reference is not None)
    stream = responses(
        network, groups, reads, calibration, replacement, directions, passes=passes, memory_bytes=memory_bytes
    )
    for answer in followed(stream, len(calibration), journal):
        for name, response in answer.by_group.items():
            if count is None:
                target = None if reference is None else reference[answer.batch.rows].to(answer.logits)
                for units, values in divergences(answer.logits, response, target, temperature):
                    moments[name].update(values, units)
            else:
                moments[name].update(probed(response, count, temperature))
    return mean_scores(moments, len(calibration))


def num_probes(network: LayerGraph, asked: int | None) -> int | None:
    """How many probes stand for the classes; None for one pass for each class."""
    if asked is not None:
        return asked
    return PROBES if network.outputs[0].example_shape[-1] > MANY_CLASSES else None


def mean_scores(moments: Mapping[str, Moments], examples: int) -> Scores:
    """Means and their standard errors, as scores."""
    return Scores(
        values={name: sums.mean() for name, sums in moments.items()},
        errors={name: sums.error() for name, sums in moments.items()},
        examples=examples,
    )


def followed(stream: Iterator[Responses], total: int, journal: Journal) -> Iterator[Responses]:
    """The stream, with its progress told and stops heeded between batches."""
    for answer in stream:
        journal.check()
        yield answer
        journal.progress(answer.batch.rows.stop, total)


def divergences(
    logits: Tensor, response: Tensor, target: Tensor | None, temperature: float
) -> Iterator[tuple[slice, Tensor]]:
    """What each unit's removal does to each example, by chunks of units: (units, (B, u)).

    `logits` (B, K); `response` (K, B, units), the Jacobian; `target` (B, K), a teacher's logits, or None.
    """
    log_q = torch.log_softmax(logits / temperature, -1)[:, None]
    log_p = log_q if target is None else torch.log_softmax(target / temperature, -1)[:, None]
    before = divergence_terms(log_p, log_q).sum(-1)
    num_classes, num_examples, num_units = response.shape
    step = max(1, CHUNK_BYTES // (num_classes * num_examples * response.element_size()))
    for start in range(0, num_units, step):
        units = slice(start, start + step)
        without = logits[:, None] - response[:, :, units].permute(1, 2, 0)
        log_i = torch.log_softmax(without / temperature, -1)
        yield units, divergence_terms(log_p, log_i).sum(-1) - before


@dataclass
class Probes:
    """Directions v_m for every example, and t − p where there is a teacher: (M or M + 1, B, K).

    The signs of an example depend on the seed and its place among the calibration inputs, not on the batches.
    """

    count: int
    temperature: float
    seed: int
    reference: Tensor | None
    _generator: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng([self.seed, 0x9205E])

    def __call__(self, batch: Batch, logits: Tensor) -> Tensor:
        p = torch.softmax(logits / self.temperature, -1)
        drawn = self._generator.random((len(batch), self.count, p.shape[1]))  # row by row, whatever the batches
        signs = torch.from_numpy(np.where(drawn < 0.5, -1.0, 1.0)).to(p).movedim(1, 0)
        weights = signs * p.sqrt()
        directions = weights - weights.sum(-1, keepdim=True) * p
        if self.reference is None:
            return directions
        teacher = torch.softmax(self.reference[batch.rows].to(logits) / self.temperature, -1)
        return torch.cat([directions, (teacher - p)[None]])


def probed(response: Tensor, count: int, temperature: float) -> Tensor:
    """The estimate for each example: answers (M or M + 1, B, units) -> (B, units)."""
    quadratic = response[:count].square().mean(0) / (2 * temperature**2)
    return quadratic + response[count] / temperature if len(response) > count else quadratic
