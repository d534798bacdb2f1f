"""How the outputs answer to the units: Jacobians contracted with what an ablation takes away, edge by edge.

    J_u = Σ over reads and positions of ∂y/∂x_u · r_u        (B, K) for each unit u
    R_m = v_m · J_u                                          for directions v_m of the outputs

∂y/∂x_u is the gradient at the read edge alone, of what that reader is given, not of the unit's value: a residual
stream that is read ten times has ten edges, and what one reader passes on is never counted again at the next. Each
direction costs one backward pass, in which every read edge contracts its gradient with r at once and forgets it.

Where one reader multiplies a unit with itself (queries and keys under one width: S = Σ_u q_u k_u), both edges see the
removal. Under zero ablation ΔS = −q_u k_u, while each edge by itself claims −∂y/∂S·q_u k_u: together twice the truth,
so only the first counts, and the linearisation is exact in S. Under other ablations ΔS = −(r_q k + q r_k − r_q r_k):
both edges count, and the last term, of second order in r, is left out. (A gate on such a unit is one on its first
factor.)

Edges whose source no example changes are left out: there is no telling to which example their gradient belongs.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from workers.graph.groups import Groups
from workers.graph.layer_graph import LayerGraph
from workers.pruning.calibration import Batch, Calibration
from workers.pruning.examples import Layout, find_layouts
from workers.pruning.observation import activation_bytes, as_input, batch_size, observed, read_bytes
from workers.pruning.reads import Read, ReadingRun
from workers.pruning.replacement import Replacement, is_whole

# (batch, logits (B, K)) -> directions (M, B, K), one row of each for every example.
Directions = Callable[[Batch, Tensor], Tensor]


@dataclass(frozen=True)
class Responses:
    """What a batch's outputs are, and how they answer."""

    batch: Batch
    logits: Tensor  # (B, K)
    directions: Tensor  # (M, B, K)
    by_group: Mapping[str, Tensor]  # (M, B, units)


@dataclass
class Contraction:
    """A listener: aliases what readers are given, and contracts the gradients that come back."""

    groups: Groups
    replacement: Replacement
    layouts: Mapping[fx.Node, Layout]
    examples: int
    removed: dict[tuple[str, fx.Node], Tensor] = field(default_factory=dict)
    entries: list[Tensor] = field(default_factory=list)  # where gradients end
    sums: dict[str, Tensor] = field(default_factory=dict)  # (B, units) of the current pass

    def __call__(self, read: Read, value: Tensor) -> Tensor:
        if read.source not in self.layouts or (read.again and self.replacement.ablation == "zero"):
            return value
        key = read.group, read.source
        with torch.no_grad():
            if key not in self.removed:
                take = self.replacement.removed_whole if is_whole(read, value) else self.replacement.removed
                self.removed[key] = take(read, value.detach())
        if not value.requires_grad:
            value = value.detach().requires_grad_()
            self.entries.append(value)
        alias = value.view_as(value)
        alias.register_hook(lambda gradient: self.add(read, gradient))  # type: ignore[no-untyped-call]  # torch's own
        return alias

    def add(self, read: Read, gradient: Tensor) -> None:
        """Contract a gradient (of the shape of the value that was read) with r, into (B, units)."""
        removed, layout = self.removed[read.group, read.source], self.layouts[read.source]
        contract = contracted_whole if is_whole(read, gradient) else contracted
        answer = contract(read, layout, gradient, removed, self.examples)
        total = self.sums.setdefault(read.group, answer.new_zeros(self.examples, self.groups[read.group].num_units))
        total[:, read.present] += answer

    def backward(self, logits: Tensor, direction: Tensor, *, last: bool) -> Mapping[str, Tensor]:
        """One pass along `direction` (B, K): (B, units) of every group."""
        self.sums = {}
        if self.entries:
            torch.autograd.grad(logits, self.entries, direction, retain_graph=not last, allow_unused=True)
        return self.sums


def contracted(read: Read, layout: Layout, gradient: Tensor, removed: Tensor, examples: int) -> Tensor:
    """Σ over positions and the indices of a unit of gradient · removed: (B, units)."""
    product = read.taken(gradient) * removed
    axis = 2 + layout.axis - (layout.axis > read.axis)
    split = layout.split(product, axis, examples)
    return split.sum([other for other in range(1, split.dim()) if other != axis + 1]).T


def contracted_whole(read: Read, layout: Layout, gradient: Tensor, removed: Tensor, examples: int) -> Tensor:
    """The same where the units are all channels, and `removed` is in the layout of the value."""
    if (read.axis, layout.axis, len(gradient)) == (1, 0, examples):
        return (
            torch.linalg.vecdot(gradient.flatten(2), removed.flatten(2)) if gradient.dim() > 2 else gradient * removed
        )
    split = layout.split(gradient * removed, layout.axis, examples)
    units = read.axis + 2 * (layout.axis < read.axis)
    kept = split.sum([other for other in range(split.dim()) if other not in (units, layout.axis + 1)])
    return kept if layout.axis + 1 < units else kept.T


def responses(
    network: LayerGraph,
    groups: Groups,
    reads: Mapping[str, tuple[Read, ...]],
    calibration: Calibration,
    replacement: Replacement,
    directions: Directions,
    *,
    passes: int,
    memory_bytes: int,
) -> Iterator[Responses]:
    """The answers of every batch of the calibration inputs, in order.

    `passes` is how many directions there will be: one backward pass each. Activations, what is taken away at every
    read, and the answers, M·B·units, are kept within `memory_bytes` by the size of the batches.
    """
    layouts = find_layouts(network, reads, next(iter(calibration.batches(8))).x)
    units = sum(group.num_units for group in groups.values())
    held = 2 * activation_bytes(network) + 3 * read_bytes(network, reads) + 8 * (passes + 2) * units
    with observed(network):
        for batch in calibration.batches(batch_size(held, memory_bytes)):
            listener = Contraction(groups, replacement, layouts, len(batch))
            with torch.enable_grad():
                logits = ReadingRun(network, reads, listener).outputs(as_input(network, batch.x))
            yield answers(batch, logits, directions(batch, logits.detach()), listener)


def answers(batch: Batch, logits: Tensor, directions: Tensor, listener: Contraction) -> Responses:
    """All passes over one batch."""
    found: dict[str, list[Tensor]] = {name: [] for name in listener.groups}
    for place, direction in enumerate(directions):
        sums = listener.backward(logits, direction, last=place == len(directions) - 1)
        for name, parts in found.items():
            parts.append(sums[name] if name in sums else logits.new_zeros(len(batch), listener.groups[name].num_units))
    by_group = {name: torch.stack(parts).detach() for name, parts in found.items()}
    return Responses(batch, logits.detach(), directions, by_group)


def every_class(_batch: Batch, logits: Tensor) -> Tensor:
    """The K unit vectors, so that the answers are the Jacobian itself: (K, B, K)."""
    num_examples, num_classes = logits.shape
    return torch.eye(num_classes, dtype=logits.dtype, device=logits.device)[:, None].expand(-1, num_examples, -1)
