"""What the units of every group say, from two passes over the inputs, in memory that does not grow with them.

A unit's activation is its mean over positions (and over its indices, where it has several) at its *first read*:
behind batch norm and nonlinearity, in the form in which the first layer that mixes it gets it. The first pass finds
its range and the covariance of the group; the second counts bins of equal width over that range.

    entropy              H(bin(a_i)), Miller–Madow, nats
    label information    I(bin(a_i); Y), Miller–Madow, nats
    pairs                I(bin(a_i); bin(a_j)) of up to 64 pairs of a group, plug-in, in at most 8 bins each
    explained            R² of a unit from the others (covariance.py), over all positions
    dead                 the same for every input, at every position

No estimator from few examples can be believed by itself, so what chance gives stands beside it: the same counts with
each example's bin beside the label, or the partner's bin, of the example before it. The inputs come in a drawn order,
so that neighbours are unrelated; nothing depends on how they are cut into batches.

Legend: B examples of a batch, u units that come by at the first read, w indices of each, p positions, m pairs of
units, P bins of a pair.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from service.contract.errors import Invalid
from workers.analysis.covariance import Covariance, explained, explained_by_chance
from workers.graph.groups import Groups
from workers.graph.layer_graph import LayerGraph
from workers.information.binning import bin_codes, count_codes
from workers.information.estimators import (
    miller_madow_entropy,
    miller_madow_mutual_information,
    plug_in_mutual_information,
)
from workers.journal import Journal
from workers.pruning.calibration import Batch, Calibration
from workers.pruning.criteria.activation import cut, mean_activation, shares
from workers.pruning.examples import Layout, find_layouts
from workers.pruning.labels import required_labels
from workers.pruning.observation import activation_bytes, as_input, batch_size, observed
from workers.pruning.reads import Read, ReadingRun

PAIR_BINS = 8
MOST_PAIRS = 64
MOST_UNITS = 4096  # of a group, for which a covariance is kept: 128 MB
LEAST_EXAMPLES = 2


@dataclass(frozen=True)
class Pairs:
    """What pairs of units share; plain data."""

    possible: int
    bins: int
    chosen: Tensor  # (m, 2) int64, units of the group
    information: Tensor  # (m,) nats, plug-in
    chance: Tensor  # (m,) the same with the example before


@dataclass(frozen=True)
class Activity:
    """What is known of one group; tensors are (units of the group,), NaN for units that do not come by."""

    reader: str
    dead: Tensor  # bool
    entropy: Tensor  # nats
    label_information: Tensor | None  # nats; None without labels
    label_chance: float | None
    explained: Tensor | None  # NaN for dead units; None for too few rows, or too many units
    explained_chance: float | None
    rows: int
    pairs: Pairs | None  # None for fewer than two living units

    @classmethod
    def from_plain(cls, plain: Mapping[str, object]) -> "Activity":
        """What `dataclasses.asdict` made of one."""
        pairs = plain["pairs"]
        return cls(**{**plain, "pairs": Pairs(**pairs) if isinstance(pairs, dict) else None})  # type: ignore[arg-type]  # as it was


def activities(
    network: LayerGraph,
    groups: Groups,
    reads: Mapping[str, tuple[Read, ...]],
    calibration: Calibration,
    *,
    bins: int,
    seed: int,
    memory_bytes: int,
    journal: Journal,
) -> dict[str, Activity]:
    """The activity of every group whose units the inputs reach, by name.

    `memory_bytes` bounds counts and covariances: where those of all groups do not fit, some groups are measured at a
    time. Raises `Invalid` for fewer than two inputs.
    """
    if len(calibration) < LEAST_EXAMPLES:
        raise Invalid(f"layers are measured on {len(calibration)} example; at least {LEAST_EXAMPLES} are needed")
    layouts = find_layouts(network, reads, next(iter(calibration.batches(8))).x)
    first = {name: reads[name][0] for name in groups if reads[name] and reads[name][0].source in layouts}
    num_labels = int(required_labels(calibration, "label_information").max()) + 1 if calibration.labelled else 1
    sizes = {name: held_bytes(groups[name].num_units, bins, num_labels) for name in first}
    found: dict[str, Activity] = {}
    with observed(network), torch.no_grad():
        for names in shares(sizes, memory_bytes):
            gaze = Gaze(network, {name: first[name] for name in names}, layouts, calibration, memory_bytes, journal)
            for name, sums in counted(gaze, bins, num_labels, seed).items():
                found[name] = activity_of(sums, groups[name].num_units, first[name])
            journal.progress(len(found), len(first))
    return found


def held_bytes(units: int, bins: int, num_labels: int) -> int:
    """What is held of one group while it is measured."""
    return 8 * (units * bins * num_labels * 2 + min(units, MOST_UNITS) ** 2 + MOST_PAIRS * PAIR_BINS**2 * 2)


@dataclass(frozen=True)
class Gaze:
    """A network under observation at the first reads of some groups."""

    network: LayerGraph
    first: Mapping[str, Read]
    layouts: Mapping[torch.fx.Node, Layout]
    calibration: Calibration
    memory_bytes: int
    journal: Journal

    def values(self) -> Iterator[tuple[Batch, Read, Tensor]]:
        """(batch, read, what is read) of every batch and group."""
        taken: list[tuple[Read, Tensor]] = []

        def listen(read: Read, value: Tensor) -> Tensor:
            taken.append((read, value))
            return value

        run = ReadingRun(self.network, {name: (read,) for name, read in self.first.items()}, listen)
        size = batch_size(2 * activation_bytes(self.network), self.memory_bytes)
        for batch in self.calibration.batches(size):
            self.journal.check()
            taken.clear()
            run.run(as_input(self.network, batch.x))
            for read, value in taken:
                yield batch, read, value

    def channels(self, batch: Batch, read: Read, value: Tensor) -> Tensor:
        """What the units say at every position: (u, w, p, B)."""
        taken, layout = read.taken(value), self.layouts[read.source]
        axis = 2 + layout.axis - (layout.axis > read.axis)
        split = layout.split(taken, axis, len(batch))
        return split.movedim(axis + 1, -1).flatten(2, -2)

    def pooled(self, batch: Batch, read: Read, value: Tensor) -> Tensor:
        """The activations of a batch: (B, u)."""
        return mean_activation(read, self.layouts[read.source], value, len(batch))


@dataclass
class Sums:
    """All that is counted of one group."""

    covariance: Covariance
    low: Tensor  # (u,), of the activations
    high: Tensor
    counts: "Counts | None" = None


def counted(gaze: Gaze, bins: int, num_labels: int, seed: int) -> dict[str, Sums]:
    """Two passes over the inputs."""
    found: dict[str, Sums] = {}
    for batch, read, value in gaze.values():
        channels, pooled = gaze.channels(batch, read, value), gaze.pooled(batch, read, value)
        low, high = pooled.amin(0), pooled.amax(0)
        if read.group not in found:
            covariance = Covariance(channels.flatten(2)[..., 0].clone(), products=len(channels) <= MOST_UNITS)
            found[read.group] = Sums(covariance, low, high)
        sums = found[read.group]
        sums.covariance.update(channels)
        sums.low, sums.high = torch.minimum(sums.low, low), torch.maximum(sums.high, high)
    for name, sums in found.items():
        edges = cut(sums.low, sums.high, bins)
        pairs = drawn_pairs((~sums.covariance.constant).nonzero().flatten(), [seed, crc32(name.encode())])
        sums.counts = Counts(edges, bins, num_labels, pairs.to(edges.device))
    for batch, read, value in gaze.values():
        counts = found[read.group].counts
        assert counts is not None  # noqa: S101  made above
        counts.update(gaze.pooled(batch, read, value), batch.labels if num_labels > 1 else None)
    return found


def drawn_pairs(units: Tensor, seed: Sequence[int]) -> Tensor:
    """All pairs of `units` (v,), or `MOST_PAIRS` of them without repetition, by seed: (m, 2), the lesser first."""
    possible = math.comb(len(units), 2)
    if possible <= MOST_PAIRS:
        return torch.combinations(units, 2)
    drawn: set[tuple[int, int]] = set()
    generator = np.random.default_rng(seed)
    while len(drawn) < MOST_PAIRS:
        one, other = sorted(generator.choice(len(units), 2, replace=False).tolist())
        drawn.add((one, other))
    return units[torch.tensor(sorted(drawn))]


class Counts:
    """Bins of the units of one group, by label and by pair; and the same beside the example before."""

    def __init__(self, edges: Tensor, bins: int, num_labels: int, pairs: Tensor) -> None:
        self.edges, self.bins, self.num_labels, self.pairs = edges, bins, num_labels, pairs
        self.pair_bins = min(bins, PAIR_BINS)
        units = len(edges)
        self.by_label = torch.zeros(units, bins, num_labels, dtype=torch.int64)
        self.by_chance = torch.zeros_like(self.by_label)
        self.by_pair = torch.zeros(len(pairs), self.pair_bins, self.pair_bins, dtype=torch.int64)
        self.by_chance_pair = torch.zeros_like(self.by_pair)
        self.before: tuple[Tensor, Tensor | None] | None = None  # codes (1, u) and label (1,) of the last example

    def update(self, pooled: Tensor, labels: Tensor | None) -> None:
        """Count a batch: activations (B, u) and labels (B,)."""
        codes = bin_codes(pooled, self.edges)
        self.by_label += self._labelled(codes, labels)
        self.by_pair += self._paired(codes, codes)
        mine, before, labels_before = codes, codes[:-1], None if labels is None else labels[:-1]
        if self.before is None:
            mine = codes[1:]
        else:
            before = torch.cat([self.before[0], before])
            if labels is not None and labels_before is not None and self.before[1] is not None:
                labels_before = torch.cat([self.before[1], labels_before])
        if len(mine):
            if labels_before is not None:
                self.by_chance += self._labelled(mine, labels_before)
            self.by_chance_pair += self._paired(mine, before)
        self.before = codes[-1:], None if labels is None else labels[-1:]

    def _labelled(self, codes: Tensor, labels: Tensor | None) -> Tensor:
        table = count_codes(codes, self.bins, labels, self.num_labels).cpu()
        return table.reshape(len(self.edges), self.bins, self.num_labels)

    def _paired(self, codes: Tensor, others: Tensor) -> Tensor:
        """Joint counts of the first unit's bin in `codes` and the second's in `others`: (m, P, P)."""
        if not len(self.pairs):
            return self.by_pair.new_zeros(self.by_pair.shape)
        one, other = (each * self.pair_bins // self.bins for each in (codes, others))
        joint = one[:, self.pairs[:, 0]] * self.pair_bins + other[:, self.pairs[:, 1]]
        return count_codes(joint, self.pair_bins**2).cpu().reshape(self.by_pair.shape)


def activity_of(sums: Sums, num_units: int, read: Read) -> Activity:
    """What follows from the counts of one group of `num_units`."""
    covariance, counts = sums.covariance, sums.counts
    assert counts is not None  # noqa: S101  both passes are made
    present = torch.from_numpy(read.present)
    constant = covariance.constant
    dead = torch.zeros(num_units, dtype=torch.bool)
    dead[present] = constant
    labelled = counts.num_labels > 1
    living = (~constant).nonzero().flatten()
    known = covariance.cross is not None and covariance.rows > len(living) > 1
    return Activity(
        reader=read.reader.name,
        dead=dead,
        entropy=spread(miller_madow_entropy(counts.by_label.sum(2)), present, num_units),
        label_information=spread(miller_madow_mutual_information(counts.by_label), present, num_units)
        if labelled
        else None,
        label_chance=float(miller_madow_mutual_information(counts.by_chance).mean()) if labelled else None,
        explained=spread(explained(covariance.covariance()[living][:, living]), present[living], num_units)
        if known
        else None,
        explained_chance=explained_by_chance(len(living), covariance.rows) if known else None,
        rows=covariance.rows,
        pairs=shared(counts, present, len(living)) if len(living) > 1 else None,
    )


def shared(counts: Counts, present: Tensor, num_living: int) -> Pairs:
    """What the chosen pairs share."""
    return Pairs(
        possible=math.comb(num_living, 2),
        bins=counts.pair_bins,
        chosen=present[counts.pairs.cpu()],
        information=plug_in_mutual_information(counts.by_pair),
        chance=plug_in_mutual_information(counts.by_chance_pair),
    )


def spread(values: Tensor, units: Tensor, num_units: int) -> Tensor:
    """`values` at the places of `units`, NaN elsewhere: (num_units,) float64."""
    found = torch.full((num_units,), torch.nan, dtype=torch.float64)
    found[units] = values.double().cpu()
    return found
