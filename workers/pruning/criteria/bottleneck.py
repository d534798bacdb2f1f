"""The information bottleneck: noise on every unit, as loud as the network can bear (VIBNet).

Every unit u has a gate, which multiplies it wherever it is read: z_u = μ_u + σ_u·ε, with ε ~ N(0, 1) drawn anew for
each unit, example and step, and the same at every read of that example. Trained by Adam on the calibration inputs is

    loss(gated outputs) + β Σ_u c_u · ½ log(1 + μ_u²/σ_u²)                Dai et al. 2018, equation 10
    c_u = MACs of u / Σ MACs of all units                                 a costly unit has to be worth more

over μ and log σ², and at a share of their rate, which may be 0, the weights of a copy of the network; the rate falls
linearly to 0. The paper trains gates and weights at one rate and keeps both. Here the weights that were trained along
are thrown away, and the more they move, the more the gates speak of another network than the one that is judged.
½ log(1 + μ²/σ²) is the closed form of the KL that bounds what passes through u, in nats; the paper weighs it by layer
and by positions, here the cost does. The loss is the cross-entropy with the labels, or, where there are none or by
choice, KL(reference ‖ gated outputs) of the network's own outputs or a teacher's. As long as μ²/σ² is large and the
loss quadratic in the gates with curvature H_u, σ² settles at β·c_u/H_u: what the training finds is worth by cost.

    s_u = c_u · μ_u²/σ_u²

High means keep. Within a group this is the order of the paper's log(μ²/σ²), which is already one by cost; times c_u it
is the worth of the whole unit, as other criteria give it, so that allocations by cost divide it out again. The paper
itself drops units with log(σ²/μ²) ≥ 0: the notes say how many these are.

Under a light penalty on the distillation loss s_u is about 2/β times output_kl_fisher (gates.py). A heavier one makes
units compete: of two that say the same, one may drown while the gate of the other grows to do the work of both.

The copy runs in evaluation mode: the gates are the only noise, batch norms keep their statistics, and μ = 1, σ = 0 is
the network as it was. What reads a unit twice and multiplies (queries and keys under one width) is gated on the first
factor only, as in sensitivity.py; what no example changes has the noise of a batch's first example.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, fx

from service.contract.errors import Diverged
from workers.graph.groups import Groups
from workers.graph.layer_graph import LayerGraph
from workers.information.crossentropy import cross_entropy_from_logits
from workers.information.divergence import kl_divergence_from_logits
from workers.journal import Journal
from workers.pruning.calibration import Calibration
from workers.pruning.examples import Layout, find_layouts
from workers.pruning.labels import required_labels
from workers.pruning.observation import activation_bytes, as_input, base_logits, batch_size, read_bytes
from workers.pruning.reads import Read, ReadingRun
from workers.pruning.scores import Scores
from workers.training.determinism import Positions, batch_bounds, deterministic, epoch_order

Reads = Mapping[str, tuple[Read, ...]]
LossName = Literal["task", "distillation"]

INITIAL_LOG_VARIANCE, INITIAL_SPREAD = -9.0, 0.01  # as in the paper's own code, for μ about 1


@dataclass(frozen=True)
class BottleneckTraining:
    """How gates are trained."""

    epochs: int  # over the calibration inputs
    beta: float  # nats of loss that one nat through the whole network is worth
    lr: float  # of the gates, at the first step
    weight_rate: float  # of the copied weights, as a share of lr
    batch_size: int
    loss: LossName | None  # None: task where there are labels


@dataclass(frozen=True)
class Gates:
    """The gates of all groups, one group after another: (units,) each."""

    mean: Tensor  # μ
    log_variance: Tensor  # log σ²
    costs: Tensor  # c, which sum to 1

    @classmethod
    def drawn(cls, groups: Groups, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> "Gates":
        """Gates near μ = 1 and log σ² = −9, all of them a little apart."""
        costs = cost_shares(groups)
        mean, log_variance = INITIAL_SPREAD * torch.randn(2, len(costs), generator=generator, dtype=dtype)
        return cls(
            (1 + mean).to(device).requires_grad_(),
            (INITIAL_LOG_VARIANCE + log_variance).to(device).requires_grad_(),
            costs.to(device, dtype),
        )

    def sample(self, noise: Tensor) -> Tensor:
        """The gates z = μ + σ·ε under noise (B, units)."""
        return self.mean + (self.log_variance / 2).exp() * noise

    def penalty(self) -> Tensor:
        """Σ c · ½ log(1 + μ²/σ²), a scalar, in nats."""
        return (self.costs * self.signal_to_noise().log1p()).sum() / 2

    def signal_to_noise(self) -> Tensor:
        """μ²/σ²: (units,)."""
        return self.mean.square() * (-self.log_variance).exp()


def cost_shares(groups: Groups) -> Tensor:
    """Every unit's c: (units,) float64, with sum 1; equal where no unit costs anything."""
    macs = [
        torch.full((group.num_units,), float(group.macs_per_unit), dtype=torch.float64) for group in groups.values()
    ]
    costs = torch.cat(macs) if macs else torch.zeros(0, dtype=torch.float64)
    return costs / costs.sum() if costs.any() else torch.full_like(costs, 1 / max(len(costs), 1))


@dataclass
class GatedReads:
    """A listener that multiplies every unit by its gate."""

    layouts: Mapping[fx.Node, Layout]
    starts: Mapping[str, int]  # group -> its first column of z
    z: Tensor = field(init=False)  # (B, units + 1): the gates of the examples that run, and a column of ones
    columns: dict[Read, Tensor] = field(default_factory=dict)  # read -> which column of z is for each channel

    def use(self, z: Tensor) -> None:
        """From now on the gates are `z`, (B, units)."""
        self.z = torch.cat([z, z.new_ones(len(z), 1)], 1)

    def __call__(self, read: Read, value: Tensor) -> Tensor:
        if read.again:
            return value
        if read not in self.columns:
            self.columns[read] = self._columns(read, value)
        factors = self.z[:, self.columns[read]]  # (B, channels); 1 for what is no unit of the group
        return value * laid_out(factors, read, self.layouts.get(read.source), value).to(value.dtype)

    def _columns(self, read: Read, value: Tensor) -> Tensor:
        column = np.full(value.shape[read.axis], self.z.shape[1] - 1)
        column[read.indices[read.present]] = self.starts[read.group] + read.present[:, None]
        return torch.from_numpy(column).to(value.device)


def laid_out(factors: Tensor, read: Read, layout: Layout | None, value: Tensor) -> Tensor:
    """(B, channels) in a shape that multiplies a value: examples along their axis, channels along theirs."""
    shape = [1] * value.dim()
    shape[read.axis] = value.shape[read.axis]
    if layout is None:
        return factors[0].reshape(shape)
    size = shape[layout.axis] = value.shape[layout.axis]
    if size != len(factors):
        places = torch.arange(size, device=factors.device)
        factors = factors[places.div(layout.inner, rounding_mode="floor") % len(factors)]
    return (factors if layout.axis < read.axis else factors.T).reshape(shape)


def information_bottleneck(
    network: LayerGraph,
    groups: Groups,
    reads: Reads,
    calibration: Calibration,
    training: BottleneckTraining,
    *,
    reference: Tensor | None,
    seed: int,
    memory_bytes: int,
    journal: Journal,
) -> Scores:
    """s_u of every unit; the network is left as it was.

    `reference` (N, K) are a teacher's logits for the distillation loss, or None for the network's own. Batches run in
    parts that fit into `memory_bytes`. The same seed gives the same scores.

    Raises `Invalid` for the task loss without labels, `Diverged` where a gate is no number any more.
    """
    task = calibration.labelled if training.loss is None else training.loss == "task"
    if task:
        targets = required_labels(calibration, "information_bottleneck with the task loss").to(calibration.device)
    else:
        targets = base_logits(network, calibration, memory_bytes) if reference is None else reference
    with deterministic(calibration.device):
        trainer = Trainer(network, groups, reads, calibration, training, targets.detach(), seed, memory_bytes)
        gates = trainer.run(journal)
    return scores_of(groups, gates, len(calibration))


class Trainer:
    """Gates, and the copy of a network whose units they are on, in training."""

    def __init__(
        self,
        network: LayerGraph,
        groups: Groups,
        reads: Reads,
        calibration: Calibration,
        training: BottleneckTraining,
        targets: Tensor,  # (N,) int64 labels, or (N, K) logits
        seed: int,
        memory_bytes: int,
    ) -> None:
        self.calibration, self.training, self.targets, self.seed = calibration, training, targets, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.network, copied_reads = trainable_copy(network, reads, weights=training.weight_rate > 0)
        weights = [weight for weight in self.network.parameters() if weight.is_floating_point()]
        dtype = torch.promote_types(weights[0].dtype, torch.float32) if weights else torch.float32
        self.gates = Gates.drawn(groups, dtype, calibration.device, self.generator)
        layouts = find_layouts(self.network, copied_reads, next(iter(calibration.batches(8))).x)
        self.listener = GatedReads(layouts, first_columns(groups))
        self.reading = ReadingRun(self.network, copied_reads, self.listener)
        self.part = batch_size(2 * activation_bytes(network) + 3 * read_bytes(network, reads), memory_bytes)
        rates = [training.lr, training.weight_rate * training.lr]
        self.optimizer = torch.optim.Adam([
            {"params": params, "lr": lr, "base": lr}
            for params, lr in zip([[self.gates.mean, self.gates.log_variance], weights], rates, strict=True)
        ])  # fmt: skip

    def run(self, journal: Journal) -> Gates:
        """All epochs; the gates at their end."""
        bounds = batch_bounds(len(self.calibration), self.training.batch_size)
        num_steps, step = self.training.epochs * len(bounds), 0
        for epoch in range(self.training.epochs):
            order = epoch_order(self.seed, epoch, len(self.calibration))
            for start, stop in bounds:
                journal.check()
                self.take_step(order[start:stop], 1 - step / num_steps)
                step += 1
                journal.progress(step, num_steps)
        if not all(bool(part.isfinite().all()) for part in (self.gates.mean, self.gates.log_variance)):
            raise Diverged(
                f"a gate of information_bottleneck became NaN or infinite within {num_steps} steps (learning rate "
                f"{self.training.lr:g}, beta {self.training.beta:g}); try a tenth of the criterion's lr"
            )
        return self.gates

    def take_step(self, rows: Positions, rate: float) -> None:
        """One step downhill, at this share of the rates, on the examples at these places among the calibration inputs.

        Gradients of parts of the batch add up to those of the whole.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["base"]
        self.optimizer.zero_grad(set_to_none=True)
        noise = torch.randn(len(rows), len(self.gates.mean), generator=self.generator, dtype=self.gates.mean.dtype)
        with torch.enable_grad():
            for start in range(0, len(rows), self.part):
                chunk = slice(start, start + self.part)
                part = self.loss(rows[chunk], noise[chunk].to(self.calibration.device)) / len(rows)
                part.backward()  # type: ignore[no-untyped-call]  # torch's own
            penalty = self.training.beta * self.gates.penalty()
            penalty.backward()  # type: ignore[no-untyped-call]  # torch's own
        self.optimizer.step()

    def loss(self, rows: Positions, noise: Tensor) -> Tensor:
        """The task's or the distillation loss of some examples, summed, under this noise (B, units)."""
        x, _ = self.calibration.split.batch(self.calibration.positions[rows], self.calibration.device)
        self.listener.use(self.gates.sample(noise))
        logits = self.reading.outputs(as_input(self.network, x))
        target = self.targets[torch.from_numpy(rows).to(self.targets.device)].to(logits.device)
        if target.dim() == 1:
            return cross_entropy_from_logits(logits, target).sum()
        return kl_divergence_from_logits(target.to(logits), logits).sum()


def trainable_copy(network: LayerGraph, reads: Reads, *, weights: bool) -> tuple[LayerGraph, Reads]:
    """A copy in evaluation mode, whose weights take gradients only if asked to, and the same reads in its graph."""
    copied = copy.deepcopy(network).eval()
    for weight in copied.parameters():
        weight.requires_grad_(weights and weight.is_floating_point())
    twin = dict(zip(network.graph.nodes, copied.graph.nodes, strict=True))
    moved = {
        name: tuple(replace(read, source=twin[read.source], reader=twin[read.reader]) for read in edges)
        for name, edges in reads.items()
    }
    return copied, moved


def first_columns(groups: Groups) -> dict[str, int]:
    """Group -> where its units begin among all."""
    sizes = [group.num_units for group in groups.values()]
    return dict(zip(groups, np.cumsum([0, *sizes])[:-1].tolist(), strict=True))


def scores_of(groups: Groups, gates: Gates, examples: int) -> Scores:
    """What trained gates say, c · μ²/σ², and what the paper's own rule would do, in words."""
    ratio = gates.signal_to_noise().detach().double()
    worth = (gates.costs.double() * ratio).cpu()
    drowned = (ratio <= 1).cpu()
    parts = {name: slice(start, start + groups[name].num_units) for name, start in first_columns(groups).items()}
    by_group = ", ".join(f"{name} {int(drowned[part].sum())}" for name, part in parts.items() if drowned[part].any())
    note = (
        f"Of {len(drowned)} units, {int(drowned.sum())} have log(σ²/μ²) ≥ 0, and would go by VIBNet's own rule"
        f"{': ' + by_group if by_group else ''}."
    )
    return Scores({name: worth[part].clone() for name, part in parts.items()}, examples=examples, notes=(note,))
