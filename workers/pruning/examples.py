"""Where the examples of a batch lie in a value of the graph.

Mostly along an axis of their own; but a network may merge it with others, as (batch × tokens, channels) or
(tokens × batch, channels). Sizes alone do not tell the two apart. So a few examples are run: the axis that grows with
the batch is the one, and the places that change when one example does are that example's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from workers.graph.layer_graph import LayerGraph
from workers.pruning.observation import as_input, observed
from workers.pruning.reads import Read, ReadingRun


@dataclass(frozen=True)
class Layout:
    """The size of `axis` is outer × examples × inner."""

    axis: int
    inner: int

    def split(self, value: Tensor, axis: int, examples: int) -> Tensor:
        """`value`, whose axis of examples is now at `axis`, with that split into (outer, examples, inner)."""
        outer = value.shape[axis] // (examples * self.inner)
        return value.reshape(*value.shape[:axis], outer, examples, self.inner, *value.shape[axis + 1 :])


def find_layouts(network: LayerGraph, reads: Mapping[str, tuple[Read, ...]], x: Tensor) -> dict[fx.Node, Layout]:
    """For each source that is read, where examples lie in its values; `x` are at least two examples.

    A source that no example changes, such as what is computed from parameters alone, has none.
    """
    first, other = x[:1], different(x)
    batches = [torch.cat(parts) for parts in ([first, first], [first, other], [first, first, first])]
    same, changed, longer = (sources(network, reads, batch) for batch in batches)
    found = {}
    for source, value in same.items():
        axes = [axis for axis, size in enumerate(value.shape) if longer[source].shape[axis] != size]
        if axes:
            found[source] = layout(axes[0], (value != changed[source]))
    return found


def different(x: Tensor) -> Tensor:
    """An example that is not the first: (1, …)."""
    if x.is_floating_point():
        noise = torch.randn(x[:1].shape, generator=torch.Generator().manual_seed(0))
        return x[:1] + noise.to(x)
    others = (x[1:] != x[:1]).flatten(1).sum(1)
    return x[1 + int(others.argmax()) :][:1]


def sources(network: LayerGraph, reads: Mapping[str, tuple[Read, ...]], x: Tensor) -> dict[fx.Node, Tensor]:
    """What every source gives for a batch."""
    found: dict[fx.Node, Tensor] = {}

    def listen(read: Read, value: Tensor) -> Tensor:
        found[read.source] = value
        return value

    with observed(network), torch.no_grad():
        ReadingRun(network, reads, listen).run(as_input(network, x))
    return found


def layout(axis: int, differs: Tensor) -> Layout:
    """The layout in which all that differs belongs to the second of two examples.

    Among several such, the one in which most of the second example's places differ; examples first, if still in doubt.
    """
    places = differs.movedim(axis, 0).flatten(1).any(1) if differs.dim() > 1 else differs
    half = len(places) // 2
    best, most = Layout(axis, half), -1
    for inner in (divisor for divisor in range(half, 0, -1) if half % divisor == 0):
        second = places.reshape(-1, 2, inner)
        hits = int(second[:, 1].sum())
        if not second[:, 0].any() and hits > most:
            best, most = Layout(axis, inner), hits
    return best
