"""What stands in for a unit that is ablated: at every read, what is taken away of its value.

    zero      r = x                    the unit is gone
    mean      r = x − x̄                its mean over the calibration inputs stays, as a bias would keep it
    residual  r_U = ((C⁻¹)_UU)⁻¹ (C⁻¹ x̃)_U    what a ridge regression on the rest of its group predicts of it stays

with x̃ = x − x̄, C the covariance of the group's channels at this source over examples and positions, plus the ridge
λ·mean(diag C)·I, and U the w indices of one unit. For w = 1 this is (C⁻¹x̃)ᵤ/(C⁻¹)ᵤᵤ, the residual of the unit given
the others (theory §3). Readers get x − r. A unit that never changes has r = 0 under mean and residual.

All statistics come from one pass over the calibration inputs. Products within a batch are those of the values' own
type, less those at the first place, so that a large mean costs no digits; batches are summed in float64. The result
does not depend on the batches but for rounding.

Where a group has more than `MAX_CHANNELS` channels at a source, as behind the flattening of a wide convolution, the
w indices of a unit are taken for positions: each is predicted from the same index of the other units, with one
covariance for all. Beyond as many units, the mean stands in.

Channels over which a norm took the mean obey a linear relation, so that each follows from the others without any
error; but only as long as all of them are there. Such a group is judged as if it were not related (`unrelated`):
else every channel of a transformer's stream is held for superfluous, and too many go.

Legend: u units that come by, w indices of each, n places (examples × positions).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from workers.graph.groups import Groups
from workers.graph.labels import LabelArray
from workers.graph.layer_graph import LayerGraph
from workers.pruning.calibration import Calibration
from workers.pruning.observation import activation_bytes, as_input, batch_size, observed, read_bytes
from workers.pruning.reads import Read, ReadingRun

Ablation = Literal["residual", "mean", "zero"]

RIDGE = 1e-3  # λ, times the mean variance
RELATED = 1e-5  # of the mean variance; a direction that has less is a linear relation
MAX_CHANNELS = 4096  # of a group at one source, for which a covariance is kept: 128 MB
MEMORY_BYTES = 2**30


@dataclass
class Statistics:
    """Sums over the channels of one group at one source."""

    shift: Tensor  # (u, w), which is taken off before anything is summed
    total: Tensor  # (u, w)
    cross: Tensor | None = None  # (c, c), of c = u·w channels, or u where indices are positions
    count: int = 0  # n

    def update(self, channels: Tensor) -> None:
        """Count the channels of a batch: (u, w, …)."""
        values = channels.flatten(2) if channels.dim() > 2 else channels[..., None]
        values = values - self.shift[..., None]
        self.count += values.shape[2]
        self.total += values.sum(2).double().cpu()
        if self.cross is not None:
            rows = values.reshape(len(self.cross), -1)
            self.cross += (rows @ rows.T).double().cpu()


@dataclass(frozen=True)
class Stand:
    """What is known of one group at one source."""

    mean: Tensor  # (u, w) float64
    regression: Tensor | None = None  # (c, c) float64: x̃ -> r
    _cast: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor | None]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def like(self, value: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and regression in the type and on the device of a value."""
        key = value.dtype, value.device
        if key not in self._cast:
            regression = None if self.regression is None else self.regression.to(value)
            self._cast[key] = self.mean.to(value), regression
        return self._cast[key]


@dataclass(frozen=True)
class Replacement:
    """What stands in for the units of all groups."""

    ablation: Ablation
    stands: Mapping[tuple[str, str], Stand]  # (group, source) -> statistics; none for zero

    def removed(self, read: Read, value: Tensor, units: LabelArray | None = None) -> Tensor:
        """r, what is taken away at a read: of the shape of `read.taken(value, units)`, (units, w, …).

        `units` are among those that come by there (`read.present`), and all of them by default. The regression
        always looks at all: it is one matrix product over them, whatever is asked for.
        """
        if self.ablation == "zero":
            return read.taken(value, units)
        mean, regression = self.stands[read.group, read.source.name].like(value)
        rows = slice(None) if units is None else torch.from_numpy(np.searchsorted(read.present, units))
        if regression is None:
            taken = read.taken(value, units)
            return taken - mean[rows].reshape(taken.shape[:2] + (1,) * (taken.dim() - 2))
        taken = read.taken(value)
        centred = taken - mean.reshape(mean.shape + (1,) * (taken.dim() - 2))
        wanted = regression.reshape(len(mean), -1, len(regression))[rows].flatten(0, 1)
        residual = wanted @ centred.reshape(len(regression), -1)
        return residual.reshape(-1, *taken.shape[1:])

    def removed_whole(self, read: Read, value: Tensor) -> Tensor:
        """What is taken away, in the layout of the value, where units are all its channels in order (`is_whole`)."""
        if self.ablation == "zero":
            return value
        mean, regression = self.stands[read.group, read.source.name].like(value)
        columns = value.reshape(math.prod(value.shape[: read.axis]), len(mean), -1)
        if regression is None:
            return (columns - mean).reshape(value.shape)
        removed = torch.matmul(regression, columns) if columns.shape[2] > 1 else columns[..., 0] @ regression.T
        return (removed.reshape(columns.shape) - regression @ mean).reshape(value.shape)

    def replaced(self, read: Read, value: Tensor, units: LabelArray | Sequence[int]) -> Tensor:
        """`value` with x − r for `units`, each by itself; of those, units that do not come by are left out."""
        asked = torch.as_tensor(units, dtype=torch.int64).numpy()
        chosen = asked[read.indices[asked, 0] >= 0]
        if not len(chosen):
            return value
        flat = torch.from_numpy(read.indices[chosen].reshape(-1)).to(value.device)
        removed = self.removed(read, value, chosen).flatten(0, 1)
        moved = value.movedim(read.axis, 0)
        return moved.index_copy(0, flat, moved.index_select(0, flat) - removed).movedim(0, read.axis)


def fit(
    network: LayerGraph,
    groups: Groups,
    reads: Mapping[str, tuple[Read, ...]],
    calibration: Calibration,
    ablation: Ablation,
    *,
    memory_bytes: int = MEMORY_BYTES,
) -> Replacement:
    """The statistics that `ablation` needs at every read of `groups`, from one pass over the calibration inputs.

    Memory: the statistics, (u·w)² float64 for each source under "residual", and batches that fit into `memory_bytes`.
    """
    if ablation == "zero":
        return Replacement(ablation, {})
    found: dict[tuple[str, str], Statistics] = {}
    first: dict[tuple[str, str], Read] = {}

    def listen(read: Read, value: Tensor) -> Tensor:
        key = read.group, read.source.name
        if first.setdefault(key, read) is read:
            channels = value.movedim(read.axis, 0)[:, None] if is_whole(read, value) else read.taken(value)
            if key not in found:
                found[key] = empty(channels, ablation)
            found[key].update(channels)
        return value

    run = ReadingRun(network, {name: reads[name] for name in groups}, listen)
    size = batch_size(2 * activation_bytes(network) + 4 * read_bytes(network, reads), memory_bytes)
    with observed(network), torch.no_grad():
        for batch in calibration.batches(size):
            run.run(as_input(network, batch.x))
    centred = {name for name in groups if groups[name].statistics}
    return Replacement(ablation, {key: stand(sums, centred=key[0] in centred) for key, sums in found.items()})


def is_whole(read: Read, value: Tensor) -> bool:
    """Whether the units of a read are all channels of its value, one each and in order."""
    return read.indices.shape == (value.shape[read.axis], 1) and bool((np.diff(read.indices[:, 0]) == 1).all())


def empty(channels: Tensor, ablation: Ablation) -> Statistics:
    """Statistics of nothing yet, for channels (u, w, …) of which the first place is typical."""
    units, width = channels.shape[:2]
    rows = units * width if units * width <= MAX_CHANNELS else units
    keeps = ablation == "residual" and rows <= MAX_CHANNELS
    cross = torch.zeros(rows, rows, dtype=torch.float64) if keeps else None
    shift = channels.reshape(units, width, -1)[..., 0].clone()
    return Statistics(shift, torch.zeros(units, width, dtype=torch.float64), cross)


def stand(statistics: Statistics, *, centred: bool = False) -> Stand:
    """What follows from the sums; `centred` says that a norm takes the mean over the group's channels."""
    shifted = statistics.total / statistics.count
    mean = shifted + statistics.shift.double().cpu()
    if statistics.cross is None:
        return Stand(mean)
    channels = len(statistics.cross)
    means = shifted.reshape(channels, -1)
    shared = means.shape[1]  # indices taken for positions
    covariance = (statistics.cross / statistics.count - means @ means.T) / shared
    rounding = (8 * torch.finfo(statistics.shift.dtype).eps) ** 2
    if float(covariance.diagonal().mean()) <= rounding * float(mean.square().mean()):
        return Stand(mean, torch.zeros_like(covariance))
    covariance = unrelated(covariance) if centred else covariance
    return Stand(mean, residual_regression(covariance, channels // len(mean)))


def unrelated(covariance: Tensor) -> Tensor:
    """The covariance with the mean variance in every direction that has next to none; (c, c) -> (c, c)."""
    variances, directions = torch.linalg.eigh(covariance)
    relations = directions[:, variances < RELATED * variances.mean()]
    added: Tensor = covariance + variances.mean() * relations @ relations.T
    return added


def residual_regression(covariance: Tensor, width: int, ridge: float = RIDGE) -> Tensor:
    """The matrix that takes x̃ to r: ((C⁻¹)_UU)⁻¹ (C⁻¹)_U: for each unit U of `width` channels; (c, c) -> (c, c)."""
    channels = len(covariance)
    added = ridge * covariance.diagonal().mean() * torch.eye(channels, dtype=covariance.dtype)
    precision = torch.cholesky_inverse(torch.linalg.cholesky(covariance + added))
    rows = precision.reshape(-1, width, channels)
    blocks = torch.stack([rows[unit, :, unit * width : (unit + 1) * width] for unit in range(len(rows))])
    solved: Tensor = torch.linalg.solve(blocks, rows)
    return solved.reshape(channels, channels)
