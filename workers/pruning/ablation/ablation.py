"""Exact ablation: the logits of a network without each of its units in turn.

Definition. p₋ᵢ is what the network gives when, at every edge at which unit i's group is read (reads.py), the unit's
channels x_U are replaced by x_U − r_U. Both are those of the network as it is, also at later reads of a residual
stream, whose value the earlier reads have changed by then: there too the unit's channels are the original's x_U − r_U,
and all others are as the ablated network computes them. Under zero ablation the channels are zero at every reader.

The naive way takes a forward pass for each unit. Here, for each batch of examples,

 1. one pass keeps the values that suffixes read (suffix.py);
 2. pairs (unit, example) with r = 0 at every read are left out: their logits are the network's own;
 3. the first readers are updated by what the unit gave them (consumer_updates.py);
 4. what follows is computed for the rows of a tile, stacked along the batch axis (stacking.py), tile by tile.

What cannot be stacked, or disagrees with a full pass on the first few examples, is computed by full passes; the journal
is told. The results are those of full passes but for rounding.

Memory. `memory_bytes` holds a private copy of the network, the kept values and r of a batch, and a tile. Batches shrink
to fit; where few examples would fit, groups are taken a few at a time, with a pass of the network for each few.
"""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from workers.graph.cost import example_batch
from workers.graph.groups import Groups
from workers.graph.labels import LabelArray
from workers.graph.layer_graph import LayerGraph
from workers.journal import Journal, Silent
from workers.pruning.ablation.consumer_updates import Tile
from workers.pruning.ablation.folded_network import Folded, fold
from workers.pruning.ablation.full_passes import one_by_one
from workers.pruning.ablation.stacking import Batching, find_batching, values_of
from workers.pruning.ablation.suffix import (
    Ablations,
    Edge,
    NotStackable,
    Suffix,
    first_output,
    pass_bytes,
    plan,
    run_suffix,
)
from workers.pruning.calibration import Batch, Calibration
from workers.pruning.examples import Layout
from workers.pruning.observation import tensor_bytes
from workers.pruning.reads import Read
from workers.pruning.replacement import Replacement

EXAMPLES = 1024  # in a batch at most
FEW = 16  # examples in a batch, below which groups are taken fewer at a time
TILE_BYTES = 2**20  # of a tile's largest value: what stays in a core's cache, and below what malloc maps anew
PART_BYTES = 2**21  # of logits that leave at once
ROWS = 8  # of a tile, where memory allows: a layer's weights are laid out anew for each
CHECKED = 2  # examples on which a stacked suffix is compared with full passes of two units
TOLERANCE = {torch.float64: 1e-7}  # of the largest logit; 1e-4 in other types


@dataclass(frozen=True)
class AblatedLogits:
    """The outputs without each of some units of one group, on some examples."""

    group: str
    units: LabelArray  # (u,) numbers within the group
    rows: slice  # of the calibration inputs
    logits: Tensor  # (u, n, K)
    base: Tensor  # (n, K) of the network as it is


@torch.no_grad()  # while it computes; not while its reader does
def ablated_logits(
    network: LayerGraph,
    groups: Groups,
    reads: Mapping[str, tuple[Read, ...]],
    calibration: Calibration,
    replacement: Replacement,
    *,
    memory_bytes: int,
    only: Mapping[str, Sequence[int] | LabelArray] | None = None,
    journal: Journal | None = None,
) -> Iterator[AblatedLogits]:
    """The logits without every unit of `groups` (those in `only`, where given), on all calibration inputs.

    Every pair of a unit and an example comes exactly once; the order is that of the batches, then of the groups, but
    where memory is short. `network` has one input and takes it batch first; it is left as it is.
    """
    chosen = chosen_units(groups, only)
    total = sum(map(len, chosen.values())) * len(calibration)
    if not total:
        return
    work = Work(network, reads, replacement, chosen, calibration, memory_bytes, journal or Silent())
    done = 0
    for few in work.segments():
        for batch in calibration.batches(work.examples(few)):
            for part in work.batch(few, batch):
                done += part.logits.shape[0] * part.logits.shape[1]
                work.journal.progress(done, total)
                yield part


def chosen_units(groups: Groups, only: Mapping[str, Sequence[int] | LabelArray] | None) -> dict[str, LabelArray]:
    """The units to ablate by group, ascending."""
    if only is None:
        return {name: np.arange(group.num_units) for name, group in groups.items()}
    return {name: np.unique(np.asarray(only[name], dtype=np.int64)) for name in groups if len(only.get(name, ()))}


class Work:
    """One call of `ablated_logits`: the private copy, the plans, and how much goes at a time."""

    def __init__(
        self,
        network: LayerGraph,
        reads: Mapping[str, tuple[Read, ...]],
        replacement: Replacement,
        chosen: Mapping[str, LabelArray],
        calibration: Calibration,
        memory_bytes: int,
        journal: Journal,
    ) -> None:
        self.network, self.reads, self.replacement = network, reads, replacement
        self.chosen, self.journal = chosen, journal
        watched = [node for name in chosen for read in reads[name] for node in (read.source, read.reader)]
        self.folded: Folded = fold(network, watched)
        self.output = first_output(self.folded.network)
        first = next(iter(calibration.batches(3))).x
        probe = torch.cat([first] * 3)[:3]
        self.batching = find_batching(self.folded.network, self.folded.entry(probe))
        self.plans = {name: self.plan(name) for name in chosen}
        self.checked: set[str] = set()
        weights = sum(tensor.numel() * tensor.element_size() for tensor in self.folded.network.state_dict().values())
        self.memory_bytes = max(memory_bytes - 2 * weights, 1)  # making the copy leaves holes of its size
        self.pass_bytes = pass_bytes(self.folded.network)

    # Plans ----------------------------------------------------------------------------------------------------------

    def plan(self, name: str) -> Suffix | None:
        """The suffix of a group; None where it takes full passes."""
        if self.batching is None:
            self.tell(name, "the network does not take one input whose first axis alone is the batch")
            return None
        try:
            return plan(self.folded.network, self.batching, self.edges(name, self.batching), self.chosen[name])
        except NotStackable as reason:
            self.tell(name, str(reason))
            return None

    def edges(self, name: str, batching: Batching) -> tuple[Edge, ...]:
        edges = []
        for read in self.reads[name]:
            source, reader = self.folded.nodes[read.source], self.folded.nodes[read.reader]
            layout = batching.layouts.get(source)
            if layout is None or layout.axis == read.axis:
                raise NotStackable(f"it is not known where examples lie in {source}")
            edges.append(Edge(read, source, reader, layout))
        return tuple(edges)

    def tell(self, name: str, reason: str) -> None:
        text = f"{name}: every unit takes a full pass of the network, because {reason}"
        self.journal.event("log", {"text": text})

    # How much at a time ---------------------------------------------------------------------------------------------

    def segments(self) -> list[list[str]]:
        """The groups, in order, as many at a time as memory allows with a few examples."""
        found: list[list[str]] = []
        for name in self.plans:
            if found and self.fitting([*found[-1], name]) >= FEW:
                found[-1].append(name)
            else:
                found.append([name])
        return found

    def examples(self, names: Sequence[str]) -> int:
        """How many examples a batch has."""
        return max(1, min(EXAMPLES, self.fitting(names)))

    def fitting(self, names: Sequence[str]) -> int:
        """How many examples a third of the memory holds; a tile takes a quarter, and allocators their share."""
        plans = [found for found in map(self.plans.get, names) if found is not None]
        kept: set[fx.Node] = {node for suffix in plans for node in suffix.needs}
        removed = [sum(self.bytes_of(node) for node in {edge.source for edge in suffix.edges}) for suffix in plans]
        passing = self.pass_bytes * (2 if len(plans) < len(names) else 1)
        each = sum(map(self.bytes_of, kept)) + 4 * max(removed, default=0) + passing
        return int(self.memory_bytes // 3 // max(each, 1))

    def bytes_of(self, node: fx.Node) -> int:
        """Of one example, where the node's value depends on examples."""
        if self.batching is None or node not in self.batching.dependent:
            return 0
        return tensor_bytes(node.meta.get("val")) // example_batch(self.network)

    def tile_rows(self, suffix: Suffix) -> int:
        by_cache = TILE_BYTES // max(suffix.widest, 1)
        by_memory = self.memory_bytes // 4 // max(suffix.row_bytes, 1)
        return int(max(2, min(max(by_cache, ROWS), by_memory)))

    # Computing ------------------------------------------------------------------------------------------------------

    def batch(self, names: Sequence[str], batch: Batch) -> Iterator[AblatedLogits]:
        """All units of some groups on one batch."""
        x = self.folded.entry(batch.x)
        x = torch.cat([x, x[-1:]]) if len(x) == 1 else x  # exported graphs may take a batch of one for no batch
        plans = [found for found in map(self.plans.get, names) if found is not None]
        needs = {node for suffix in plans for node in suffix.needs}
        before = values_of(self.folded.network, needs | {self.output}, x)
        base = before[self.output]
        assert isinstance(base, Tensor)  # noqa: S101  the first output is the logits
        for name in names:
            self.journal.check()
            suffix = self.plans[name]
            if suffix is not None and name not in self.checked:
                suffix = self.checked_plan(suffix, name, batch, before, base)
            if suffix is None:
                yield from self.by_full_passes(name, batch, base)
            else:
                yield from self.by_tiles(suffix, name, batch, before, base)

    def by_full_passes(self, name: str, batch: Batch, base: Tensor) -> Iterator[AblatedLogits]:
        units, x = self.chosen[name], self.folded.entry(batch.x)
        for unit, logits in zip(units, self.passes(name, units, x), strict=True):
            yield AblatedLogits(name, np.array([unit]), batch.rows, logits[None], base[: len(batch)])

    def passes(self, name: str, units: LabelArray, x: Tensor) -> Iterator[Tensor]:
        return one_by_one(self.network, self.reads[name], self.replacement, units, x.contiguous())

    def by_tiles(
        self, suffix: Suffix, name: str, batch: Batch, before: Mapping[fx.Node, object], base: Tensor
    ) -> Iterator[AblatedLogits]:
        examples = len(base)
        ablations = removals(suffix, self.replacement, before, examples)
        active = active_pairs(ablations, len(suffix.units), examples)
        active[:, len(batch) :] = False
        each = max(base.numel() * base.element_size(), 1)
        at_once = max(1, min(PART_BYTES, self.memory_bytes // 8) // each)
        for start in range(0, len(suffix.units), at_once):
            block = slice(start, min(start + at_once, len(suffix.units)))
            logits = self.block(suffix, block, active, before, ablations, base)
            yield AblatedLogits(name, suffix.units[block], batch.rows, logits[:, : len(batch)], base[: len(batch)])

    def block(
        self,
        suffix: Suffix,
        block: slice,
        active: Tensor,
        before: Mapping[fx.Node, object],
        ablations: Ablations,
        base: Tensor,
    ) -> Tensor:
        """The logits (u, N, K) of some units of a group."""
        logits = base.expand(block.stop - block.start, *base.shape).clone()
        flat = logits.flatten(0, 1)
        if suffix.steps:
            for tile in tiles(active[block], block.start, self.tile_rows(suffix)):
                self.journal.check()
                rows = run_suffix(suffix, tile, before, ablations, len(base))
                if tile.span is not None:
                    logits[tile.segments[0][0] - block.start, tile.span] = rows
                else:
                    flat.index_copy_(0, (tile.slots - block.start) * len(base) + tile.examples, rows)
        return logits

    # Trust ----------------------------------------------------------------------------------------------------------

    def checked_plan(
        self, suffix: Suffix, name: str, batch: Batch, before: Mapping[fx.Node, object], base: Tensor
    ) -> Suffix | None:
        """The plan of a group when it agrees with full passes on the first examples; else None, from now on."""
        self.checked.add(name)
        examples = min(CHECKED, len(batch))
        ablations = removals(suffix, self.replacement, before, len(base))
        active = active_pairs(ablations, len(suffix.units), len(base))
        # More rows than the full pass has, so that rows that are mixed with others show.
        active[:, min(2 * examples, len(batch)) :] = False
        first = max(0, min(int(active.sum(1).argmax()), len(suffix.units) - 2))
        pair = slice(first, min(first + 2, len(suffix.units)))
        found = self.block(suffix, pair, active, before, ablations, base)
        x = self.folded.entry(batch.x[:examples])
        expected = self.passes(name, suffix.units[pair], torch.cat([x, x]) if examples == 1 else x)
        for ours, theirs in zip(found, expected, strict=True):
            if not agree(ours[:examples], theirs[:examples], base):
                self.tell(name, "stacked units do not give what single passes give")
                self.plans[name] = None
                return None
        return suffix


def agree(found: Tensor, expected: Tensor, base: Tensor) -> bool:
    scale = float(torch.maximum(base.abs().max(), expected.abs().max()))
    tolerance = TOLERANCE.get(found.dtype, 1e-4)
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def removals(suffix: Suffix, replacement: Replacement, before: Mapping[fx.Node, object], examples: int) -> Ablations:
    """What stands in for the units at every source, out of the network's own values."""
    removed: dict[fx.Node, Tensor] = {}
    kept: dict[fx.Node, Tensor | None] = {}
    present: dict[fx.Node, Tensor] = {}
    indices: dict[fx.Node, Tensor] = {}
    replaced = {edge.source for step in suffix.steps if step.update is None for edge in step.edges}
    for edge in suffix.edges:
        read, value = edge.read, before[edge.source]
        if edge.source in removed or not isinstance(value, Tensor):
            continue
        indices[edge.source] = torch.from_numpy(read.indices[suffix.units]).to(value.device)
        present[edge.source] = indices[edge.source][:, 0] >= 0
        coming = suffix.units[read.indices[suffix.units, 0] >= 0]
        taken = replacement.removed(read, value, coming)
        removed[edge.source] = every_unit(by_example(taken, read, edge.layout, examples), present[edge.source])
        kept[edge.source] = None
        if edge.source in replaced and replacement.ablation != "zero":
            standing = by_example(read.taken(value, coming) - taken, read, edge.layout, examples)
            kept[edge.source] = every_unit(standing, present[edge.source])
    return Ablations(removed, kept, present, indices)


def by_example(taken: Tensor, read: Read, layout: Layout, examples: int) -> Tensor:
    """(units, w, …other axes of the source) -> (units, N, w, …the rest)."""
    axis = 2 + layout.axis - (layout.axis > read.axis)
    if taken.shape[axis] == examples:
        return taken.movedim(axis, 1)
    return layout.split(taken, axis, examples).movedim(axis + 1, 1)


def every_unit(values: Tensor, present: Tensor) -> Tensor:
    """Zeros for units that do not come by."""
    if len(values) == len(present):
        return values
    spread = values.new_zeros(len(present), *values.shape[1:])
    spread[present] = values
    return spread


def active_pairs(ablations: Ablations, units: int, examples: int) -> Tensor:
    """(units, N) bool: whether anything is taken away of an example, at any read."""
    active = torch.zeros(units, examples, dtype=torch.bool)
    for removed in ablations.removed.values():
        active |= removed.ne(0).flatten(2).any(2)
    return active


def tiles(active: Tensor, first: int, most: int) -> Iterator[Tile]:
    """The pairs that are active, unit by unit, `most` to a tile; `first` is the slot of the first unit.

    All tiles but the last have one size, because kernels are made for each size anew.
    """
    slots, examples = active.nonzero().T.contiguous()
    ends = active.sum(1).cumsum(0).tolist()
    for start in range(0, len(slots), most):
        end = min(start + most, len(slots))
        yield tile(slots[start:end] + first, examples[start:end], segments_of(ends, start, end, first))


def segments_of(ends: Sequence[int], start: int, end: int, first: int) -> list[tuple[int, int, int]]:
    """(slot, start, end) within the rows from `start` to `end`, where unit i's rows end at `ends[i]`."""
    found = []
    begin, unit = start, bisect.bisect_right(ends, start)
    while begin < end:
        stop = min(ends[unit], end)
        if stop > begin:
            found.append((unit + first, begin - start, stop - start))
        begin, unit = stop, unit + 1
    return found


def tile(slots: Tensor, examples: Tensor, segments: Sequence[tuple[int, int, int]]) -> Tile:
    if len(slots) == 1:  # exported graphs may take a batch of one for no batch
        return Tile(slots.repeat(2), examples.repeat(2), [(segments[0][0], 0, 2)], None)
    if len(segments) == 1:
        start, last = int(examples[0]), int(examples[-1])
        if last - start + 1 == len(examples):
            return Tile(slots, examples, segments, slice(start, last + 1))
    return Tile(slots, examples, segments, None)
