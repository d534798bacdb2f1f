"""The criteria by name: each a function from a network and calibration inputs to a score for every unit.

Formulas, sources, costs and options stand in service/contract/criteria.py, one type of options for each name. High
means keep.

scores = score(network, groups, find_reads(groups), calibration, OutputKl(), reference=None, seed=0, …)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from service.contract.criteria import (
    CRITERIA,
    ActivationEntropy,
    CriterionOptions,
    InformationBottleneck,
    LabelInformation,
    LeaveOneOut,
    OutputEntropy,
    OutputKl,
    OutputKlFisher,
)
from workers.graph.groups import Groups
from workers.graph.labels import LabelArray
from workers.graph.layer_graph import LayerGraph
from workers.journal import Journal
from workers.pruning.calibration import Calibration
from workers.pruning.criteria.activation import activation_entropy, label_information
from workers.pruning.criteria.bottleneck import BottleneckTraining, information_bottleneck
from workers.pruning.criteria.gates import output_kl_fisher, taylor
from workers.pruning.criteria.leave_one_out import output_sums
from workers.pruning.criteria.linearised import linearised_kl
from workers.pruning.criteria.magnitude import batchnorm_scale, magnitude, random_order
from workers.pruning.criteria.output_scores import OutputSums
from workers.pruning.criteria.screening import screened
from workers.pruning.labels import required_labels
from workers.pruning.ranks import spearman
from workers.pruning.reads import Read
from workers.pruning.replacement import Ablation, Replacement, fit
from workers.pruning.scores import Scores

EXACT_TEMPERATURE, LINEARISED_TEMPERATURE = 1.0, 4.0
WRONG_MEMBERS = 0.01  # expected share of those that screening lets go and exact scores would keep


@dataclass(frozen=True)
class Inquiry:
    """All that a criterion may look at."""

    network: LayerGraph
    groups: Groups
    reads: Mapping[str, tuple[Read, ...]]
    calibration: Calibration
    reference: Tensor | None  # (N, K) logits of a teacher on the calibration inputs
    seed: int
    memory_bytes: int
    journal: Journal
    expected_removed: Mapping[str, int] | None

    @property
    def subject(self) -> tuple[LayerGraph, Groups, Mapping[str, tuple[Read, ...]], Calibration]:
        """What is judged, and on what."""
        return self.network, self.groups, self.reads, self.calibration

    def fitted(self, ablation: Ablation) -> Replacement:
        """What stands in for ablated units."""
        return fit(*self.subject, ablation, memory_bytes=self.memory_bytes)

    def sums(self, replacement: Replacement, **also: Any) -> OutputSums:
        """The sums of exact leave-one-out."""
        return output_sums(*self.subject, replacement, memory_bytes=self.memory_bytes, journal=self.journal, **also)


def score(
    network: LayerGraph,
    groups: Groups,
    reads: Mapping[str, tuple[Read, ...]],
    calibration: Calibration,
    options: CriterionOptions,
    *,
    reference: Tensor | None,
    seed: int,
    memory_bytes: int,
    journal: Journal,
    expected_removed: Mapping[str, int] | None = None,
) -> Scores:
    """What the criterion that `options` configure says of every unit.

    `reference` are the logits of a teacher on the calibration inputs, (N, K), for output_kl: what its option
    `reference` asks for is in the caller's hands, except that "current" ignores them; the distillation of
    information_bottleneck takes them too. `expected_removed` is how many units of each group are about to go, for
    screening; left out, half of all units, ranked together. `memory_bytes` bounds batches and intermediate results.
    The network is left as it was: its mode, flags and gradients.

    Raises `Invalid` where labels are needed and there are none, `KeyError` for a criterion that is not of this table.
    """
    name = str(getattr(options, "name", ""))
    inquiry = Inquiry(network, groups, reads, calibration, reference, seed, memory_bytes, journal, expected_removed)
    return replace(FUNCTIONS[name](inquiry, options), comparable=CRITERIA[name].comparable)


# Output criteria --------------------------------------------------------------------------------------------------


def _output_kl(inquiry: Inquiry, options: OutputKl) -> Scores:
    reference = None if options.reference == "current" else inquiry.reference
    usual = EXACT_TEMPERATURE if options.mode == "exact" else LINEARISED_TEMPERATURE
    temperature = usual if options.temperature is None else options.temperature
    replacement = inquiry.fitted(options.ablation)

    def exact(only: Mapping[str, LabelArray] | None = None) -> Scores:
        return inquiry.sums(replacement, reference=reference, temperature=temperature, only=only).output_kl()

    if options.mode == "exact":
        return exact()
    linear = linearised_kl(
        *inquiry.subject,
        replacement,
        temperature=temperature,
        reference=reference,
        probes=options.probes,
        seed=inquiry.seed,
        memory_bytes=inquiry.memory_bytes,
        journal=inquiry.journal,
    )
    if options.mode == "linearised":
        return linear
    half = sum(group.num_units for group in inquiry.groups.values()) // 2
    cuts = half if inquiry.expected_removed is None else inquiry.expected_removed
    return screened(linear, exact, cuts, error_rate=WRONG_MEMBERS, seed=inquiry.seed).scores


def _output_entropy(inquiry: Inquiry, options: OutputEntropy) -> Scores:
    sums = inquiry.sums(inquiry.fitted(options.ablation))
    scores = sums.output_entropy(options.reading, absolute=options.absolute)
    if options.reading != "predictive" or options.absolute:
        return scores
    return replace(scores, notes=(*scores.notes, literal_warning(scores, sums.output_kl())))


def literal_warning(scores: Scores, divergence: Scores) -> str:
    """What the literal predictive reading does here, measured: its sign, and how it ranks beside the divergence."""
    entropy, kl = (
        torch.cat([part.values[name] for name in scores.values]) if scores.values else torch.zeros(0)
        for part in (scores, divergence)
    )
    negative = float((entropy < 0).double().mean()) if len(entropy) else 0.0
    return (
        f"output_entropy was taken literally (predictive, signed): {negative:.0%} of the units have a negative score, "
        f"and its Spearman correlation with the exact KL of the same ablation is {spearman(entropy, kl):+.2f}. "
        "Removing a useful unit makes the network less sure, so useful units come out negative, and are removed first. "
        "Use absolute: true, or output_kl."
    )


def _information_drop(inquiry: Inquiry, options: LeaveOneOut) -> Scores:
    return inquiry.sums(inquiry.fitted(options.ablation)).information_drop()


def _loss_delta(inquiry: Inquiry, options: LeaveOneOut) -> Scores:
    labels = required_labels(inquiry.calibration, "loss_delta")
    return inquiry.sums(inquiry.fitted(options.ablation), labels=labels).loss_delta()


# Gradients, activations, weights ----------------------------------------------------------------------------------


def _output_kl_fisher(inquiry: Inquiry, options: OutputKlFisher) -> Scores:
    return output_kl_fisher(
        *inquiry.subject,
        probes=options.probes,
        seed=inquiry.seed,
        memory_bytes=inquiry.memory_bytes,
        journal=inquiry.journal,
    )


def _taylor(inquiry: Inquiry, _options: CriterionOptions) -> Scores:
    return taylor(*inquiry.subject, memory_bytes=inquiry.memory_bytes, journal=inquiry.journal)


def _activation_entropy(inquiry: Inquiry, options: ActivationEntropy) -> Scores:
    return activation_entropy(
        *inquiry.subject, bins=options.bins, memory_bytes=inquiry.memory_bytes, journal=inquiry.journal
    )


def _label_information(inquiry: Inquiry, options: LabelInformation) -> Scores:
    return label_information(
        *inquiry.subject, bins=options.bins, memory_bytes=inquiry.memory_bytes, journal=inquiry.journal
    )


def _information_bottleneck(inquiry: Inquiry, options: InformationBottleneck) -> Scores:
    return information_bottleneck(
        *inquiry.subject,
        BottleneckTraining(
            epochs=options.epochs,
            beta=options.beta,
            lr=options.lr,
            weight_rate=options.weight_rate,
            batch_size=options.batch_size,
            loss=options.loss,
        ),
        reference=inquiry.reference,
        seed=inquiry.seed,
        memory_bytes=inquiry.memory_bytes,
        journal=inquiry.journal,
    )


def _l1(inquiry: Inquiry, _options: CriterionOptions) -> Scores:
    return magnitude(inquiry.network, inquiry.groups, 1)


def _l2(inquiry: Inquiry, _options: CriterionOptions) -> Scores:
    return magnitude(inquiry.network, inquiry.groups, 2)


def _batchnorm_scale(inquiry: Inquiry, _options: CriterionOptions) -> Scores:
    return batchnorm_scale(inquiry.network, inquiry.groups)


def _random(inquiry: Inquiry, _options: CriterionOptions) -> Scores:
    return random_order(inquiry.groups, inquiry.seed)


# Name -> the function, which takes the options of that name.
FUNCTIONS: Mapping[str, Callable[[Inquiry, Any], Scores]] = {
    "output_kl": _output_kl,
    "output_entropy": _output_entropy,
    "information_drop": _information_drop,
    "loss_delta": _loss_delta,
    "output_kl_fisher": _output_kl_fisher,
    "taylor": _taylor,
    "activation_entropy": _activation_entropy,
    "label_information": _label_information,
    "information_bottleneck": _information_bottleneck,
    "l1": _l1,
    "l2": _l2,
    "batchnorm_scale": _batchnorm_scale,
    "random": _random,
}
