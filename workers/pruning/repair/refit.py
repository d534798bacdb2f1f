"""The refit: every layer that read removed units is solved for anew, in closed form, from unlabelled inputs.

With X what a layer reads in the pruned network and Z what the teacher says there, on the same examples,

    Wᵀ = (cov X + λ·mean(diag cov X)·I)⁻¹ cov(X, Z),    b = z̄ − W x̄

in the order in which the network is computed, so that each layer sees what the refits before it really produce. Z is
taken behind the layer's own batch norm and before the nonlinearity, where units remain; at a residual sum it is the
teacher's sum less what the pruned network adds there by itself, so that the gap of the sum is closed and not only
that of the branch. A layer that has nowhere to put a bias is solved for without one, from moments about zero.

Both networks go through the calibration set once, side by side and stage by stage (stages.py, lockstep.py). Moments
are summed in float64 (gram.py), and a convolution's rows are the patches that it reads (affine.py), at most
`max_rows` of them. A seeded fifth of the examples is held out: by it λ is chosen where it is "auto", and a refit that
would raise its error is not taken. What is taken is then solved from all examples.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workers.graph.cost import example_batch
from workers.graph.groups import Groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.unit_cost import Kept
from workers.journal import Journal
from workers.pruning.calibration import Calibration
from workers.pruning.observation import as_input, observed, tensor_bytes
from workers.pruning.observation import batch_size as fitting
from workers.pruning.repair.batch_norms import rewrite_norm, scale_and_shift
from workers.pruning.repair.evidence import Collection, Division, Extent
from workers.pruning.repair.frontier import Frontier, Values
from workers.pruning.repair.lockstep import Pair
from workers.pruning.repair.readers import Reader, find_readers
from workers.pruning.repair.regression import Evidence, Solution, relative_error
from workers.pruning.repair.remaining import Remaining
from workers.pruning.repair.stages import aim, plan

Ridge = float | Literal["auto"]

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # what "auto" chooses from
MAX_ROWS = 100_000  # of a layer; more examples are worth more than more places of each
LIVE_VALUES = 8  # of a batch that are there at once, about
NOT_FINITE = "what it reads, or what it would be, is not finite"


@dataclass(frozen=True)
class LayerRefit:
    """What became of one layer.

    Errors are mean squared differences from the teacher on held-out examples, as a share of the variance of what the
    teacher says: before, of the weights that the layer had; after, of the refit by the other examples.
    """

    layer: str
    rows: int = 0  # that went into the moments, held-out ones included
    ridge: float | None = None  # λ
    error_before: float | None = None
    error_after: float | None = None
    taken: bool = False
    note: str = ""  # why it was not taken


@dataclass(frozen=True)
class RefitReport:
    """All layers that read removed units, in the order in which they were solved for."""

    layers: tuple[LayerRefit, ...]
    spilled_bytes: int  # what did not fit into memory and went through temporary files

    @property
    def taken(self) -> int:
        """How many layers have new weights."""
        return sum(layer.taken for layer in self.layers)


def refit(
    teacher: LayerGraph,
    student: LayerGraph,
    groups: Groups,
    kept: Kept,
    calibration: Calibration,
    ridge: Ridge,
    *,
    memory_bytes: int,
    journal: Journal,
    seed: int = 0,
    max_rows: int = MAX_ROWS,
    batch_size: int | None = None,
) -> RefitReport:
    """Solve for every layer of `student` that reads removed units, in place.

    `student` is `teacher` without the units that `kept` says are gone, with any weights; `groups` are the teacher's.
    `ridge` is λ, as a share of the mean variance of a layer's inputs, or "auto". Of the `memory_bytes`, up to a
    quarter goes to the values of a batch (and sets its size), then comes what is known of the layers of a stage, and
    the rest holds values between stages; more of those lie in temporary files, and a layer that cannot be solved for
    in as much is left as it is. Neither this nor the batches change the result, but for rounding. Progress is counted
    in batches.
    """
    extents = [Extent.of(reader, len(calibration), max_rows) for reader in find_readers(student, groups, kept)]
    obstacles = {extent: obstacle(extent, memory_bytes) for extent in extents}
    layers = [LayerRefit(extent.reader.name, note=note) for extent, note in obstacles.items() if note]
    extent_of = {extent.reader: extent for extent, note in obstacles.items() if not note}
    num_bytes = {reader: extent.num_bytes for reader, extent in extent_of.items()}
    stages = plan(student, teacher, num_bytes, memory_bytes)
    most_bytes = max((sum(num_bytes[reader] for reader in stage.readers) for stage in stages), default=0)
    division, remaining = Division.of(calibration, seed), Remaining(groups, kept)
    size = fitting_batch(teacher, memory_bytes // 4) if batch_size is None else batch_size
    total = len(stages) * division.num_batches(size)
    room = memory_bytes * 3 // 4 - most_bytes
    with observed(teacher), observed(student), torch.no_grad(), Frontier(room) as frontier:
        pair = Pair(student, teacher, frontier)
        for place, stage in enumerate(stages):
            known = {reader: Collection(extent_of[reader], division, seed) for reader in stage.readers}
            for batch, (part, count, x) in enumerate(division.batches(size, inputs=place == 0)):
                journal.check()
                seen, taught = pair.along(stage, batch, None if x is None else as_input(student, x))
                for reader in stage.readers:
                    z = aim_of(reader, seen, taught, remaining)
                    known[reader].update(part, count, seen[reader.source], z)
                journal.progress(place * total // len(stages) + batch + 1, total)
            layers += [solve(reader, known[reader], ridge) for reader in stage.readers]
    return RefitReport(tuple(layers), frontier.spilled_bytes)


def fitting_batch(teacher: LayerGraph, memory_bytes: int) -> int:
    """The examples whose values fit into the memory, a few of each network at a time."""
    largest = max(tensor_bytes(node.meta.get("val")) for node in teacher.graph.nodes if node.op != "get_attr")
    return fitting(LIVE_VALUES * largest // example_batch(teacher), memory_bytes)


def obstacle(extent: Extent, memory_bytes: int) -> str:
    """Why a layer cannot be solved for; empty where it can."""
    if extent.reader.shared:
        return "its weight is used elsewhere too"
    if extent.num_bytes > memory_bytes:
        return f"solving for it takes {extent.num_bytes} bytes, and there are {memory_bytes}"
    return ""


def aim_of(reader: Reader, seen: Values, taught: Values, remaining: Remaining) -> Tensor:
    """The teacher's value where a layer has its aim, of the units that remain; less the student's other side."""
    value = remaining.of(taught[aim(reader)], aim(reader))
    return value if reader.residual is None else value - seen[reader.residual.other]


# Solving ----------------------------------------------------------------------------------------------------------


def solve(reader: Reader, known: Collection, ridge: Ridge) -> LayerRefit:
    """Give a layer the weights that the evidence asks for, unless the held-out examples speak against it."""
    if not known.all.finite:
        return LayerRefit(reader.name, known.all.count, note=NOT_FINITE)
    intercept = reader.has_intercept
    before = relative_error(known.held_out, current(reader))
    after = {
        one: relative_error(known.held_out, known.fitted.solution(one, intercept=intercept))
        for one in (RIDGES if ridge == "auto" else (ridge,))
    }
    best = min(after, key=lambda one: after[one])
    solution = known.all.solution(best, intercept=intercept)
    note = objection(before, after[best], solution, reader.weight.dtype)
    if not note:
        write(reader, known.all, solution)
    return LayerRefit(reader.name, known.all.count, best, before, after[best], taken=not note, note=note)


def objection(before: float, after: float, solution: Solution, dtype: torch.dtype) -> str:
    """Why a solution is not taken; empty where it is."""
    if not (solution.matrix.to(dtype).isfinite().all() and solution.bias.to(dtype).isfinite().all()):
        return NOT_FINITE
    return "the refit would be further from the teacher on the examples held out" if after > before else ""


def current(reader: Reader) -> Solution:
    """What the layer, with its batch norm, computes as it is."""
    matrix = reader.affine.matrix(reader.weight.double())
    groups, _, outputs = matrix.shape
    bias = matrix.new_zeros(groups * outputs) if reader.bias is None else reader.bias.double()
    if reader.norm is not None:
        scale, shift = scale_and_shift(reader.norm)
        matrix, bias = matrix * scale.view(groups, 1, outputs), bias * scale + shift
    return Solution(matrix, bias.view(groups, outputs))


def write(reader: Reader, evidence: Evidence, solution: Solution) -> None:
    """Let the layer, with its batch norm, compute the solution."""
    reader.weight.copy_(reader.affine.weight(solution.matrix, reader.weight.shape))
    bias = solution.bias.flatten()
    if reader.norm is not None:
        mean, variance = evidence.statistics(solution)
        rewrite_norm(reader.norm, mean.flatten(), variance.flatten(), bias)
        bias = torch.zeros_like(bias)
    if reader.bias is not None:
        reader.bias.copy_(bias)
