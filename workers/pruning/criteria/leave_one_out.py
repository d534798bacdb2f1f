"""Exact leave-one-out: every unit is ablated in turn, and what becomes of the outputs is summed.

The stream of outputs is that of ablation.py; the scores are read from the sums of output_scores.py.
"""

from collections.abc import Mapping

from torch import Tensor

from workers.graph.groups import Groups
from workers.graph.labels import LabelArray
from workers.graph.layer_graph import LayerGraph
from workers.journal import Journal
from workers.pruning.ablation.ablation import ablated_logits
from workers.pruning.calibration import Calibration
from workers.pruning.criteria.output_scores import OutputSums
from workers.pruning.observation import base_logits
from workers.pruning.reads import Read
from workers.pruning.replacement import Replacement


def output_sums(
    network: LayerGraph,
    groups: Groups,
    reads: Mapping[str, tuple[Read, ...]],
    calibration: Calibration,
    replacement: Replacement,
    *,
    memory_bytes: int,
    journal: Journal,
    reference: Tensor | None = None,
    labels: Tensor | None = None,
    temperature: float = 1.0,
    only: Mapping[str, LabelArray] | None = None,
) -> OutputSums:
    """The sums over all calibration inputs of the outputs without each unit, or each of `only` (group -> units).

    `reference` (N, K) are a teacher's logits, `labels` (N,) the labels; `temperature` is that of the divergence.
    """
    base = base_logits(network, calibration, memory_bytes).cpu()
    sizes = {name: group.num_units for name, group in groups.items()}
    sums = OutputSums(sizes, base, reference, labels, temperature)
    stream = ablated_logits(
        network, groups, reads, calibration, replacement, memory_bytes=memory_bytes, only=only, journal=journal
    )
    for part in stream:
        journal.check()
        sums.update(part)
    return sums
