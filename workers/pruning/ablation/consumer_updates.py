"""What a reader gives without a unit, from what it gave with it: out − W_U · r_U.

A linear layer and an ungrouped convolution are linear in each channel. What a unit's removal takes from their output is
an outer product, or the convolution of that unit's channels alone: a share of 1/channels of the layer's work.

Legend: R rows (unit, example), unit by unit; m rows of one unit; N examples; w channels of a unit; O outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from workers.graph.calls import arguments_of, is_aten
from workers.graph.labels import LabelArray
from workers.graph.layer_graph import LayerGraph
from workers.graph.module_tree import tensor_at
from workers.pruning.ablation.folded_network import CONVOLUTIONS, rank
from workers.pruning.ablation.stacking import FIRST, Batching, leading, rows
from workers.pruning.examples import Layout
from workers.pruning.reads import Read


@dataclass(frozen=True)
class Tile:
    """Rows that are computed as one batch."""

    slots: Tensor  # (R,) int64: which of the chosen units
    examples: Tensor  # (R,) int64: which of the batch's examples
    segments: Sequence[tuple[int, int, int]]  # (slot, start, end) of every unit's rows
    span: slice | None  # the examples, where they are of one unit and follow each other

    def __len__(self) -> int:
        return len(self.examples)

    def rows(self, value: Tensor, layout: Layout, examples: int) -> Tensor:
        """The rows' examples out of a value for N examples: a view of it where they follow each other."""
        if self.span is not None and layout == FIRST and len(value) == examples:
            return value[self.span]
        return rows(value, layout, examples, self.examples)


@dataclass(frozen=True)
class Update:
    """How one reader is updated: its weights by unit, and what they do with r."""

    weights: Tensor  # (units, …), as `subtract` takes them
    subtract: Callable[[Tensor, Tensor, Tensor, bool], Tensor]
    layout: Layout  # of the reader's value

    def __call__(self, before: Tensor, removed: Tensor, tile: Tile, examples: int) -> Tensor:
        """The reader's value for the rows of a tile.

        `before` is its value for all N examples as the network computes it, `removed` r of its source,
        (units, N, w, …). The result is a new tensor.
        """
        if tile.span is not None and self.layout == FIRST and len(before) == examples:
            slot = tile.segments[0][0]
            return self.subtract(before[tile.span], removed[slot][tile.span], self.weights[slot], False)
        after = rows(before, self.layout, examples, tile.examples)
        led = leading(after, self.layout, len(tile))
        for slot, start, end in tile.segments:
            gone = removed[slot].index_select(0, tile.examples[start:end])
            self.subtract(led[start:end], gone, self.weights[slot], True)
        return after


def update_of(network: LayerGraph, batching: Batching, read: Read, reader: fx.Node, units: LabelArray) -> Update | None:
    """The update of `reader`, a node of `network` that makes this read; None where there is none.

    `units` are the chosen ones, all of which come by.
    """
    indices, layout = torch.from_numpy(read.indices[units].reshape(-1)), batching.layouts[reader]
    if reader.op == "call_module":
        layer = network.get_submodule(str(reader.target))
        if isinstance(layer, nn.Linear):
            return linear_update(layer.weight, read, reader, indices, layout)
        if isinstance(layer, CONVOLUTIONS) and layer.groups == 1 and read.axis == 1 and batching.leads(reader):
            return convolution_update(layer, read, indices, layout)
    if is_aten(reader, "linear"):
        weight: Any = arguments_of(reader)["weight"]
        if weight.op == "get_attr":
            return linear_update(tensor_at(network, str(weight.target)), read, reader, indices, layout)
    return None


def linear_update(weight: Tensor, read: Read, reader: fx.Node, indices: Tensor, layout: Layout) -> Update | None:
    channel = rank(reader) - 1
    if read.axis != channel or layout.axis == channel:
        return None
    by_unit = weight.detach().index_select(1, indices.to(weight.device)).T  # (units · w, O)
    return Update(by_unit.reshape(-1, read.indices.shape[1], len(weight)).contiguous(), without_product, layout)


def without_product(values: Tensor, removed: Tensor, weight: Tensor, in_place: bool) -> Tensor:
    """(m, …, O) less the product of removed (m, w, …) and weight (w, O)."""
    channels_last = removed if removed.dim() == 2 else removed.movedim(1, -1)
    if len(weight) == 1:
        subtracted = values.addcmul_ if in_place else values.addcmul
        return subtracted(channels_last, weight[0], value=-1)
    return less(values, channels_last @ weight, in_place)


def less(values: Tensor, part: Tensor, in_place: bool) -> Tensor:
    return values.sub_(part) if in_place else values.sub(part)


def convolution_update(layer: Any, read: Read, indices: Tensor, layout: Layout) -> Update:
    weight = layer.weight.detach()
    chosen = weight.index_select(1, indices.to(weight.device))  # (O, units · w, *kernel)
    by_unit = chosen.reshape(len(weight), -1, read.indices.shape[1], *weight.shape[2:]).movedim(1, 0).contiguous()

    def without_convolution(values: Tensor, removed: Tensor, unit_weight: Tensor, in_place: bool) -> Tensor:
        """(m, O, *space) less the convolution of removed (m, w, *space), with the layer's own padding."""
        part = layer._conv_forward(rounded(removed), unit_weight, None)  # noqa: SLF001  takes fewer channels
        return less(values, part[: len(removed)], in_place)

    return Update(by_unit, without_convolution, layout)


def rounded(removed: Tensor, multiple: int = 8) -> Tensor:
    """Rows filled up to a multiple: a kernel is made for each number of rows, which costs more than a few rows."""
    missing = -len(removed) % multiple
    return torch.cat([removed, removed[:1].expand(missing, *removed.shape[1:])]) if missing else removed
