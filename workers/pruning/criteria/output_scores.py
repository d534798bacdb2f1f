"""What the outputs lose with each unit, summed from a stream of logits without it.

With p the outputs of the whole network at an input, p_i those without unit i, p̄ and p̄_i their means over inputs, t a
reference (the network itself or a teacher), all high for units to keep:

    output_kl                       E [KL(t ‖ p_i) − KL(t ‖ p)]; with t = p, E KL(p ‖ p_i) ≥ 0; at a temperature
    output_entropy, predictive      E H(p) − E H(p_i)       the starting formula: negative where removal makes unsure
    output_entropy, marginal        H(p̄) − H(p̄_i)           (absolute: the size of either)
    information_drop                I − I_i, with I = H(p̄) − E H(p)
    loss_delta                      E [CE_i − CE], with the labels

Everything is a sum over examples in float64, so the stream may come in any order and cut, and sums of parts of it may
be merged. Means have the standard error of paired differences. The entropy of a mean is no mean; its error is a
delete-one-fold jackknife over `FOLDS` parts of the examples (those whose place leaves the same remainder), which to
first order is the spread of the influences, CE(p, p̄) − H(p̄) for an example, and needs K sums for each fold and unit,
where exact influences would need K². Of an absolute score it is the error of the change itself.

Nats. Legend: u units, n examples, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from workers.graph.labels import LabelArray
from workers.information.divergence import divergence_terms
from workers.information.probability import weighted
from workers.pruning.moments import Moments
from workers.pruning.scores import Scores

FOLDS = 32
CHUNK_BYTES = 2**25


class AblatedLogits(Protocol):
    """Outputs on some examples without each of some units."""

    @property
    def group(self) -> str: ...
    @property
    def units(self) -> LabelArray: ...  # (u,)
    @property
    def rows(self) -> slice: ...  # of the calibration inputs
    @property
    def logits(self) -> Tensor: ...  # (u, n, K)


@dataclass
class FoldSums:
    """Sums by fold of the examples: how many, their distributions and their entropies, of U units."""

    num_units: int
    num_classes: int
    count: Tensor = field(init=False)  # (U, FOLDS)
    probabilities: Tensor = field(init=False)  # (U, FOLDS, K)
    entropies: Tensor = field(init=False)  # (U, FOLDS)

    def __post_init__(self) -> None:
        shape = self.num_units, FOLDS
        self.count = torch.zeros(shape, dtype=torch.float64)
        self.probabilities = torch.zeros(*shape, self.num_classes, dtype=torch.float64)
        self.entropies = torch.zeros(shape, dtype=torch.float64)

    def update(self, p: Tensor, entropies: Tensor, rows: slice, units: Tensor) -> None:
        """Count p (u, n, K) and H(p) (u, n) of the examples in `rows`."""
        folds = torch.arange(rows.start, rows.start + p.shape[1], device=p.device) % FOLDS
        share = torch.nn.functional.one_hot(folds, FOLDS).to(p)  # (n, FOLDS)
        self.count[units] += share.sum(0).cpu()
        self.probabilities[units] += torch.einsum("unk,nf->ufk", p, share).cpu()
        self.entropies[units] += (entropies @ share).cpu()

    def merge(self, other: "FoldSums") -> None:
        self.count += other.count
        self.probabilities += other.probabilities
        self.entropies += other.entropies

    def marginal(self) -> tuple[Tensor, Tensor]:
        """H(p̄) over all examples (U,), and over all but each fold (U, FOLDS); NaN where nothing is left."""
        return self._of(lambda count, total, _: torch.special.entr(total / count[..., None]).sum(-1))

    def information(self) -> tuple[Tensor, Tensor]:
        """H(p̄) − E H(p), likewise."""
        return self._of(
            lambda count, total, entropy: torch.special.entr(total / count[..., None]).sum(-1) - entropy / count
        )

    def _of(self, statistic: "Statistic") -> tuple[Tensor, Tensor]:
        sums = self.count.sum(1), self.probabilities.sum(1), self.entropies.sum(1)
        without = (
            whole[:, None] - part
            for whole, part in zip(sums, (self.count, self.probabilities, self.entropies), strict=True)
        )
        return statistic(*sums), statistic(*without)


class Statistic(Protocol):
    """Of sums (…), (…, K), (…): how many examples, their distributions, their entropies."""

    def __call__(self, count: Tensor, probabilities: Tensor, entropies: Tensor, /) -> Tensor: ...


@dataclass
class OutputSums:
    """The sums of a stream of ablated logits, from which every score of the table is read."""

    units: Mapping[str, int]  # group -> how many it has
    base: Tensor  # (N, K) logits of the whole network
    reference: Tensor | None = None  # (N, K) logits of a teacher; None: the network's own
    labels: Tensor | None = None  # (N,) int64
    temperature: float = 1.0  # of output_kl
    divergence: dict[str, Moments] = field(init=False)  # of KL(t ‖ p_i) − KL(t ‖ p)
    sharpening: dict[str, Moments] = field(init=False)  # of H(p) − H(p_i)
    losses: dict[str, Moments] = field(init=False)  # of CE_i − CE
    folds: dict[str, FoldSums] = field(init=False)

    def __post_init__(self) -> None:
        classes = self.base.shape[1]
        self.divergence = {name: Moments(count) for name, count in self.units.items()}
        self.sharpening = {name: Moments(count) for name, count in self.units.items()}
        self.losses = {name: Moments(count) for name, count in self.units.items()}
        self.folds = {name: FoldSums(count, classes) for name, count in self.units.items()}

    def update(self, part: AblatedLogits) -> None:
        """Count one part of the stream."""
        step = max(1, CHUNK_BYTES // (8 * part.logits[0].numel()))
        units = torch.as_tensor(part.units)
        for start in range(0, len(units), step):
            chosen = slice(start, start + step)
            self._add(part.group, units[chosen], part.rows, part.logits[chosen].double())

    def merge(self, other: "OutputSums") -> None:
        """Add the sums of another part of the stream, against the same base."""
        for name in self.units:
            self.divergence[name].merge(other.divergence[name])
            self.sharpening[name].merge(other.sharpening[name])
            self.losses[name].merge(other.losses[name])
            self.folds[name].merge(other.folds[name])

    def _add(self, group: str, units: Tensor, rows: slice, logits: Tensor) -> None:
        base = self.base[rows].to(logits)
        target = base if self.reference is None else self.reference[rows].to(logits)
        log_q, log_i, log_t = (torch.log_softmax(z / self.temperature, -1) for z in (base, logits, target))
        change = divergence_terms(log_t, log_i).sum(-1) - divergence_terms(log_t, log_q).sum(-1)
        self.divergence[group].update(change.T, units)
        log_p, log_p_i = (torch.log_softmax(z, -1) for z in (base, logits))
        entropy, entropy_i = (weighted(log.exp(), -log).sum(-1) for log in (log_p, log_p_i))
        self.sharpening[group].update((entropy - entropy_i).T, units)
        self.folds[group].update(log_p_i.exp(), entropy_i, rows, units)
        if self.labels is not None:
            index = self.labels[rows].to(logits.device)[:, None]
            loss = -log_p.gather(1, index)[:, 0]
            loss_i = -log_p_i.gather(2, index.expand(len(logits), -1, -1))[..., 0]
            self.losses[group].update((loss_i - loss).T, units)

    # Scores -----------------------------------------------------------------------------------------------------

    def output_kl(self) -> Scores:
        """E [KL(t ‖ p_i) − KL(t ‖ p)]."""
        return self._means(self.divergence)

    def loss_delta(self) -> Scores:
        """E [CE_i − CE]; NaN without labels."""
        return self._means(self.losses)

    def output_entropy(self, reading: Literal["predictive", "marginal"], *, absolute: bool) -> Scores:
        """H(with) − H(without), or its size."""
        scores = self._means(self.sharpening) if reading == "predictive" else self._differences("marginal")
        return absolute_of(scores) if absolute else scores

    def information_drop(self) -> Scores:
        """I − I_i."""
        return self._differences("information")

    def _means(self, moments: Mapping[str, Moments]) -> Scores:
        values = {name: sums.mean() for name, sums in moments.items()}
        return Scores(values, {name: sums.error() for name, sums in moments.items()}, len(self.base))

    def _differences(self, statistic: Literal["marginal", "information"]) -> Scores:
        whole = FoldSums(1, self.base.shape[1])
        log_p = torch.log_softmax(self.base.double(), -1)
        p, entropy = log_p.exp(), weighted(log_p.exp(), -log_p).sum(-1)
        whole.update(p[None], entropy[None], slice(0, len(p)), torch.tensor([0]))
        before, before_folds = getattr(whole, statistic)()
        values, errors = {}, {}
        for name, sums in self.folds.items():
            after, after_folds = getattr(sums, statistic)()
            values[name] = before - after
            errors[name] = jackknife_error(before_folds - after_folds, sums.count)
        return Scores(values, errors, len(p))


def jackknife_error(without: Tensor, count: Tensor) -> Tensor:
    """The standard error from values without each fold (U, FOLDS), of folds of some examples each: (U,)."""
    used = count > 0
    num_folds = used.sum(1).clamp(min=1)
    kept = torch.where(used, without, 0)
    mean = kept.sum(1) / num_folds
    spread = (torch.where(used, kept - mean[:, None], 0) ** 2).sum(1)
    return (spread * (num_folds - 1) / num_folds).sqrt()


def absolute_of(scores: Scores) -> Scores:
    """The sizes of scores, with their errors."""
    return Scores({name: value.abs() for name, value in scores.values.items()}, scores.errors, scores.examples)
