"""The ways in which a network is pruned in the benchmark: ours, other criteria at equal repair, and peers.

A way makes, for every budget, a network whose MACs are at most that share of the teacher's; Torch-Pruning removes in
steps of its own, so of its networks the smallest is taken that still has as many MACs as the budget, which is at
least as many as ours has. Whatever way chose the units, they are taken out by the same surgery, and every network is
there twice: with the teacher's weights (after removal) and, where the way repairs or its units are ours, refitted.

A stepwise way passes the budgets on its way down: the network for 25% is where the one for 12% begins.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from benchmarks.pruning_data import Data
from benchmarks.torch_pruning_half import Removal, find_attentions, output_layers
from service.contract.criteria import Criterion
from service.contract.prune_spec import Interleaved, OneShot, PruneConfig, Refit, Target
from workers.formats.artifacts import export_program
from workers.formats.pt2_reader import read_pt2
from workers.formats.tracing import as_graph
from workers.graph.groups import Groups, find_groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.lifting import lift
from workers.graph.surgery import remove
from workers.information.divergence import kl_divergence_from_logits
from workers.journal import Silent
from workers.pruning.calibration import drawn
from workers.pruning.criteria.criteria import score
from workers.pruning.reads import find_reads
from workers.pruning.repair.refit import refit
from workers.pruning.schedule.pruned import Pruned
from workers.pruning.schedule.schedule import Judgement, prune
from workers.training.data import Split

CPU = torch.device("cpu")
MEMORY = 2**30
BATCH = 256
CRITERION: TypeAdapter[Criterion] = TypeAdapter(Criterion)


@dataclass(frozen=True)
class Subject:
    """What is pruned: a trained network, as a graph with its units, and the data."""

    network: nn.Module
    graph: LayerGraph
    groups: Groups
    data: Data
    seed: int

    @classmethod
    def of(cls, network: nn.Module, data: Data, seed: int) -> "Subject":
        graph = as_graph(network, data.input_shape) if data.vocabulary is None else token_graph(network, data)
        return cls(network, graph, find_groups(graph), data, seed)

    @property
    def macs(self) -> int:
        return self.groups.size.macs


@dataclass(frozen=True)
class Offer:
    """What a way makes of a network for a budget."""

    budget: float
    gone: Mapping[str, Sequence[int]]
    refitted: LayerGraph | None  # None where the way does not repair


def token_graph(network: nn.Module, data: Data) -> LayerGraph:
    """As `as_graph`, for token ids."""
    with TemporaryDirectory() as folder:
        archive = Path(folder) / "network.pt2"
        export_program(network, torch.zeros(2, *data.input_shape, dtype=torch.int64), archive)
        return lift(read_pt2(archive)).eval()


# Through the service's own schedule -------------------------------------------------------------------------------


class Eager(Silent):
    """Wants every state, so that a pruning can be taken up where it ended."""

    def checkpoint_is_due(self) -> bool:
        return True


@dataclass(frozen=True)
class Scheduled:
    """A criterion of the service with a schedule, an allocation and a refit."""

    criterion: Mapping[str, Any]
    schedule: Interleaved | OneShot = dataclasses.field(default_factory=Interleaved)
    allocation: str = "per_mac"
    refitted: bool = True

    def __call__(self, subject: Subject, budgets: Sequence[float]) -> Iterator[Offer]:
        state: dict[str, Any] | None = None
        for budget in sorted(budgets, reverse=True):
            if isinstance(self.schedule, OneShot):
                state = None
            state = self._pruned(subject, budget, state)
            made = state["current"] if state["best"] is None else state["best"]
            pruned = Pruned.from_state(subject.graph, subject.groups, made)
            yield Offer(budget, pruned.gone, pruned.network if self.refitted else None)

    def _pruned(self, subject: Subject, budget: float, state: Mapping[str, Any] | None) -> dict[str, Any]:
        """The state in which the way arrives at a budget."""
        found: list[dict[str, Any]] = []

        def save(state: dict[str, Any]) -> Path:
            found.append(state)
            return Path("unused")

        outcome = prune(
            subject.graph,
            subject.groups,
            self._config(budget),
            score=judge_units(subject, CRITERION.validate_python(self.criterion), stepwise=self._stepwise),
            judge=judge_by(subject),
            refit=repair(subject) if self.refitted else None,
            journal=Eager(),
            save=save,
            resume_from=None if state is None else {**state, "reason": None},
        )
        assert outcome.reason == "target", outcome.reason
        if not found:  # nothing was to be done: the last step had gone as far already
            assert state is not None
            return dict(state)
        return found[-1]

    @property
    def _stepwise(self) -> bool:
        return isinstance(self.schedule, Interleaved)

    def _config(self, budget: float) -> PruneConfig:
        return PruneConfig(
            target=Target(macs=budget),
            criterion=CRITERION.validate_python(self.criterion),
            schedule=self.schedule,
            allocation=self.allocation,  # type: ignore[arg-type]
            refit=Refit() if self.refitted else None,
            min_units=1 if not self.refitted else 2,
        )


def judge_units(subject: Subject, criterion: Criterion, *, stepwise: bool) -> Any:
    """The criterion as a pruning job asks it."""
    if criterion.name == "output_kl" and criterion.reference is None:
        criterion = criterion.model_copy(update={"reference": "current" if stepwise else "teacher"})
    calibration = drawn(subject.data.train, 512, subject.seed, CPU)
    reference = torch.cat([logits_of(subject.graph, batch.x) for batch in calibration.batches(BATCH)])

    def judge(network: LayerGraph, groups: Groups, *, step: int, expected_removed: Mapping[str, int]) -> Any:
        seed = int(np.random.SeedSequence([subject.seed, step]).generate_state(1)[0])
        return score(
            network, groups, find_reads(groups), calibration, criterion,
            reference=reference, seed=seed, memory_bytes=MEMORY, journal=Silent(), expected_removed=expected_removed,
        )  # fmt: skip

    return judge


def judge_by(subject: Subject) -> Callable[[LayerGraph], Judgement]:
    taught = outputs(subject.graph, subject.data.validation)

    def judge(network: LayerGraph) -> Judgement:
        seen = outputs(network, subject.data.validation)
        return Judgement(float(kl_divergence_from_logits(taught, seen).mean()), None)

    return judge


def repair(subject: Subject) -> Any:
    """The refit as a pruning job makes it."""
    calibration = drawn(subject.data.train, 2000, subject.seed, CPU)

    def mend(teacher: LayerGraph, student: LayerGraph, groups: Groups, kept: Any) -> Any:
        return refit(
            teacher, student, groups, kept, calibration, "auto",
            memory_bytes=MEMORY, journal=Silent(), seed=subject.seed,
        )  # fmt: skip

    return mend


@torch.no_grad()
def logits_of(network: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = network(x)
    return found


def outputs(network: nn.Module, split: Split) -> Tensor:
    """(n, K) on a split."""
    network.eval()
    positions = np.arange(len(split))
    batches = (positions[start : start + BATCH] for start in range(0, len(split), BATCH))
    return torch.cat([logits_of(network, split.batch(batch, CPU)[0]) for batch in batches])


def accuracy(network: nn.Module, split: Split) -> float:
    """In percent."""
    assert split.y is not None
    labels = torch.from_numpy(np.ascontiguousarray(split.y[split.rows]))
    return 100 * float((outputs(network, split).argmax(1) == labels).double().mean())


# Torch-Pruning ----------------------------------------------------------------------------------------------------

STEPS = 400  # its own benchmark's


@dataclass(frozen=True)
class TorchPruning:
    """As its benchmark drives it: in 400 steps towards nothing, with the importance measured anew at each.

    `whole` ranks all layers together, as its benchmark does; else every layer loses the same share, which is the
    pruner's own default. Taylor takes its gradients anew before each step, from the same calibration inputs as ours.
    """

    importance: str  # magnitude or taylor
    whole: bool

    def __call__(self, subject: Subject, budgets: Sequence[float]) -> Iterator[Offer]:
        left = sorted(budgets, reverse=True)
        before: dict[str, list[int]] = {}
        for gone in self._removals(subject):
            macs = subject.groups.size_without(gone).macs if gone else subject.macs
            while left and macs < left[0] * subject.macs:
                yield self._offer(subject, left.pop(0), before)
            if not left:
                return
            before = gone
        for budget in left:
            yield self._offer(subject, budget, before)

    def _offer(self, subject: Subject, budget: float, gone: dict[str, list[int]]) -> Offer:
        selection = {name: tuple(units) for name, units in gone.items()}
        mended = Pruned.whole(subject.graph, subject.groups).without(selection)
        repair(subject)(subject.graph, mended.network, subject.groups, mended.kept)
        return Offer(budget, gone, mended.network)

    def _removals(self, subject: Subject) -> Iterator[dict[str, list[int]]]:
        """What is gone after each of its steps, in the numbers of our groups."""
        import torch_pruning

        network = copy.deepcopy(subject.network)
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        calibration = drawn(subject.data.train, 512, subject.seed, CPU)
        example = next(calibration.batches(2)).x
        heads = {layer: n for attention in find_attentions(network) for layer, n in attention.num_heads.items()}
        magnitude = self.importance == "magnitude"
        pruner = torch_pruning.pruner.BasePruner(
            network,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2)
            if magnitude
            else torch_pruning.importance.GroupTaylorImportance(),
            global_pruning=self.whole,
            pruning_ratio=1.0,
            iterative_steps=STEPS,
            ignored_layers=output_layers(network, (example,)),
            num_heads=heads,
        )
        removal = Removal(network, network, pruner.DG)
        for _ in range(STEPS):
            if not magnitude:
                take_gradients(network, calibration)
            for group in pruner.step(interactive=True):
                removal.note(group)
                group.prune()
            yield in_our_numbers(removal, subject.groups)


def take_gradients(network: nn.Module, calibration: Any) -> None:
    network.zero_grad()
    for batch in calibration.batches(BATCH):
        nn.functional.cross_entropy(network(batch.x), batch.labels, reduction="sum").div(len(calibration)).backward()


def in_our_numbers(removal: Removal, groups: Groups) -> dict[str, list[int]]:
    """The units of ours of which nothing is left."""
    found = {}
    for name, group in groups.items():
        gone: set[int] = set()
        for member in group.members:
            module = member.tensor.rpartition(".")[0]
            sides = {"out": 0, "in": 1}
            for side, axis in sides.items():
                left = removal.left.get((module, side))
                if left is not None and member.axis == axis and member.tensor.endswith(".weight"):
                    stay = np.isin(member.indices, left).any(1)
                    gone |= set(np.flatnonzero(~stay).tolist())
        if gone:
            found[name] = sorted(gone)
    return found


# The ways by name ---------------------------------------------------------------------------------------------------

Way = Callable[[Subject, Sequence[float]], Iterator[Offer]]
ONE_SHOT = OneShot(name="one_shot")


def equal(name: str, **options: Any) -> Scheduled:
    return Scheduled({"name": name, **options})


WAYS: dict[str, Way] = {
    "ours": equal("output_kl"),
    "tp_l2": TorchPruning("magnitude", whole=True),
    "tp_l2_local": TorchPruning("magnitude", whole=False),
    "tp_taylor": TorchPruning("taylor", whole=True),
    "luo_wu": Scheduled({"name": "activation_entropy"}, ONE_SHOT, "uniform", refitted=False),
    "random_uniform": Scheduled({"name": "random"}, ONE_SHOT, "uniform", refitted=False),
    "ours_best": Scheduled({"name": "output_kl"}, allocation="best"),
    "l2": equal("l2"),
    "taylor": equal("taylor"),
    "random": equal("random"),
    "random_even": Scheduled({"name": "random"}, allocation="uniform"),
    "l2_even": Scheduled({"name": "l2"}, allocation="uniform"),
    "activation_entropy": equal("activation_entropy"),
    "ours_mean": equal("output_kl", ablation="mean"),
    "output_entropy": equal("output_entropy"),
    "information_drop": equal("information_drop"),
}


def removed(subject: Subject, gone: Mapping[str, Sequence[int]]) -> LayerGraph:
    """With the teacher's weights."""
    return remove(subject.graph, gone, subject.groups).eval()
