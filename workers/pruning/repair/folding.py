"""Bias folding: what removed units said on average stays, as part of their readers' biases.

A layer that read Σ w·x over removed inputs x is given Σ w·x̄ instead, x̄ being the mean over the calibration set of
each input channel (of a dense layer, each input). That is exact mean ablation for dense layers and for convolutions
without padding; where a convolution pads, or a transposed one is spread out, a constant input gives different values
at different places, and their mean is folded. Grouped convolutions lose whole groups, which nothing else reads.
"""

import torch
from torch import Tensor

from workers.graph.groups import Groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.unit_cost import Kept
from workers.journal import Journal
from workers.pruning.calibration import Calibration
from workers.pruning.observation import as_input, observed
from workers.pruning.repair.batch_norms import statistics
from workers.pruning.repair.lockstep import Walk
from workers.pruning.repair.readers import Reader, channel_axis, find_readers
from workers.pruning.repair.remaining import Remaining
from workers.pruning.repair.stages import legs

BATCH = 64


def fold_means(
    teacher: LayerGraph, student: LayerGraph, groups: Groups, kept: Kept, calibration: Calibration, journal: Journal
) -> tuple[str, ...]:
    """Fold the means of removed units into the biases of `student`, in place, in one pass over the calibration set.

    `student` is what `remove` makes of `teacher`, with the teacher's weights; `groups` are the teacher's. A reader
    without a bias gives its share to the running mean of its own batch norm. Returns the readers that have neither,
    or whose weight is used elsewhere too; they stay as they are.
    """
    originals, readers = find_readers(teacher, groups, kept), find_readers(student, groups, kept)
    pairs = [pair for pair in zip(originals, readers, strict=True) if pair[0].affine.groups == 1]
    means = input_means(teacher, [original for original, _ in pairs], calibration, journal)
    remaining, left = Remaining(groups, kept), []
    with torch.no_grad():
        for original, reader in pairs:
            if reader.shared or not reader.has_intercept:
                left.append(reader.name)
            else:
                add_bias(reader, lost_on_average(original, means[original.source], remaining))
    return tuple(left)


def input_means(
    teacher: LayerGraph, readers: list[Reader], calibration: Calibration, journal: Journal
) -> dict[str, Tensor]:
    """Source -> an example, float64, in which every channel is its mean over all examples and places."""
    axes = {reader.source: channel_axis(reader.affine) for reader in readers}
    (leg,) = legs(teacher, [list(axes)])
    walk, totals, seen = Walk(teacher), dict[str, Tensor](), 0
    with observed(teacher), torch.no_grad():
        for batch in calibration.batches(BATCH):
            journal.check()
            values, _ = walk.along(leg, {}, as_input(teacher, batch.x))
            for name, value in values.items():
                others = [axis for axis in range(value.dim()) if axis != axes[name] % value.dim()]
                total = value.double().mean(others, keepdim=True).expand(1, *value.shape[1:]) * len(batch)
                totals[name] = totals[name] + total if name in totals else total
            seen += len(batch)
            journal.progress(seen, len(calibration))
    return {name: total / seen for name, total in totals.items()}


def lost_on_average(original: Reader, mean: Tensor, remaining: Remaining) -> Tensor:
    """What the teacher's layer makes of the means of removed inputs, of each output that remains: (M,) float64."""
    axis, affine = channel_axis(original.affine), original.affine
    stays = remaining.along(original.source, axis, mean.shape[axis]).to(mean.device)
    lost = (mean.movedim(axis, -1) * ~stays).movedim(-1, axis)
    columns = affine.columns(lost)
    average = columns.mean(tuple(range(affine.row_axes(lost)))).flatten()
    said = average @ affine.matrix(original.weight.double())[0]
    return said[remaining.along(original.node, axis, len(said)).to(said.device)]


def add_bias(reader: Reader, shift: Tensor) -> None:
    """Let a layer, or its batch norm, say `shift` (M,) more than before."""
    if reader.bias is not None:
        reader.bias.add_(shift)
    elif reader.norm is not None:
        running_mean, _ = statistics(reader.norm)
        running_mean -= shift
