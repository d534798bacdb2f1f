"""Scores of what a unit says by itself: its activation, pooled to one number for each example and binned.

    activation_entropy    H(bin(a_i)), the plug-in estimate; Luo & Wu 2017, equation 1
    label_information     I(bin(a_i); Y), Miller–Madow corrected; Battiti 1994, for units in place of features

a_i is the mean of the unit over positions (and over its indices, where it has several) at its *first read*: behind
batch norm and nonlinearity, in the form in which the first layer that mixes it gets it. A unit that is read nowhere
has 0. Bins are of equal width over each unit's range, which is found in a first pass over the inputs; a second one
counts. Nats. Each judges a unit by itself: ranks hold within a group, not across. High means keep.

Counts take units × bins × classes integers; where those of all groups do not fit into the memory, the second pass is
made several times, for some groups each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from service.contract.errors import Invalid
from workers.graph.groups import Groups
from workers.graph.layer_graph import LayerGraph
from workers.information.binning import bin_codes, count_codes, equal_width_edges
from workers.information.estimators import miller_madow_mutual_information, plug_in_entropy
from workers.journal import Journal
from workers.pruning.calibration import Batch, Calibration
from workers.pruning.criteria.sensitivity import contracted
from workers.pruning.examples import Layout, find_layouts
from workers.pruning.labels import required_labels
from workers.pruning.observation import activation_bytes, as_input, batch_size, observed
from workers.pruning.reads import Read, ReadingRun
from workers.pruning.scores import Scores

# Group -> counts (units, bins, labels) of a pass over the inputs.
Measure = Callable[[Tensor], Tensor]


def activation_entropy(
    network: LayerGraph,
    groups: Groups,
    reads: Mapping[str, tuple[Read, ...]],
    calibration: Calibration,
    *,
    bins: int,
    memory_bytes: int,
    journal: Journal,
) -> Scores:
    """H(bin(a_i)) of every unit, nats."""
    return binned_scores(
        network, groups, reads, calibration, 1, lambda counts: plug_in_entropy(counts[..., 0]),
        bins=bins, memory_bytes=memory_bytes, journal=journal,
    )  # fmt: skip


def label_information(
    network: LayerGraph,
    groups: Groups,
    reads: Mapping[str, tuple[Read, ...]],
    calibration: Calibration,
    *,
    bins: int,
    memory_bytes: int,
    journal: Journal,
) -> Scores:
    """I(bin(a_i); Y) of every unit, nats; raises `Invalid` for unlabelled data. May be slightly negative."""
    labels = required_labels(calibration, "label_information")
    num_classes = network.outputs[0].example_shape[-1]
    if not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise Invalid(
            f"The labels range over {int(labels.min())} to {int(labels.max())}, and the network has {num_classes} "
            "classes; give a dataset whose labels are its classes."
        )
    return binned_scores(
        network, groups, reads, calibration, num_classes, miller_madow_mutual_information,
        bins=bins, memory_bytes=memory_bytes, journal=journal,
    )  # fmt: skip


def binned_scores(
    network: LayerGraph,
    groups: Groups,
    reads: Mapping[str, tuple[Read, ...]],
    calibration: Calibration,
    num_labels: int,
    measure: Measure,
    *,
    bins: int,
    memory_bytes: int,
    journal: Journal,
) -> Scores:
    """`measure` of every unit's counts (units, bins, labels); zero for groups that no example changes."""
    layouts = find_layouts(network, reads, next(iter(calibration.batches(8))).x)
    first = {name: reads[name][0] for name in groups if reads[name] and reads[name][0].source in layouts}
    size = batch_size(2 * activation_bytes(network), memory_bytes)

    def pooled(names: Sequence[str]) -> Iterator[tuple[Batch, str, Tensor]]:
        """(batch, group, activations (B, units that come by)) of every batch."""
        taken: list[tuple[Read, Tensor]] = []

        def listen(read: Read, value: Tensor) -> Tensor:
            taken.append((read, value))
            return value

        run = ReadingRun(network, {name: (first[name],) for name in names}, listen)
        for batch in calibration.batches(size):
            journal.check()
            taken.clear()
            run.run(as_input(network, batch.x))
            for read, value in taken:
                yield batch, read.group, mean_activation(read, layouts[read.source], value, len(batch))

    values = {name: torch.zeros(group.num_units, dtype=torch.float64) for name, group in groups.items()}
    with observed(network), torch.no_grad():
        edges = {name: cut(*range_, bins) for name, range_ in ranges(pooled(list(first))).items()}
        for names in shares({name: len(edges[name]) * bins * num_labels * 8 for name in first}, memory_bytes):
            counts: dict[str, Tensor] = {}
            for batch, name, activations in pooled(names):
                labels = batch.labels if num_labels > 1 else None
                table = count_codes(bin_codes(activations, edges[name]), bins, labels, num_labels).cpu()
                counts[name] = counts[name] + table if name in counts else table
            for name, table in counts.items():
                units = torch.from_numpy(first[name].present)
                values[name][units] = measure(table.reshape(len(units), bins, num_labels))
    return Scores(values, examples=len(calibration), comparable=False)


def mean_activation(read: Read, layout: Layout, value: Tensor, examples: int) -> Tensor:
    """The mean over positions and the indices of a unit: (B, units that come by)."""
    ones = torch.ones_like(read.taken(value))
    return contracted(read, layout, value, ones, examples) / (ones[0].numel() // examples)


def ranges(stream: Iterator[tuple[Batch, str, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """The smallest and largest activation of every unit: two of (units,)."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for _, name, values in stream:
        low, high = values.amin(0), values.amax(0)
        if name in found:
            low, high = torch.minimum(low, found[name][0]), torch.maximum(high, found[name][1])
        found[name] = low, high
    return found


def cut(low: Tensor, high: Tensor, bins: int) -> Tensor:
    """Inner edges (units, bins − 1); beyond all values where a unit varies by no more than rounding does."""
    rounding = 64 * torch.finfo(low.dtype).eps * torch.maximum(low.abs(), high.abs())
    edges = equal_width_edges(low, high, bins)
    return torch.where((high - low > rounding)[:, None], edges, torch.inf)


def shares(sizes: Mapping[str, int], memory_bytes: int) -> Iterator[list[str]]:
    """The groups in order, as many together as fit into the memory; one by itself if it does not."""
    share: list[str] = []
    used = 0
    for name, size in sizes.items():
        if share and used + size > memory_bytes:
            yield share
            share, used = [], 0
        share.append(name)
        used += size
    if share:
        yield share
