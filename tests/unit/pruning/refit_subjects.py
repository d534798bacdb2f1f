"""Small networks that lose half their channels, in float64, and what a refit needs beside them."""

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.architectures import export
from workers.formats.pt2_reader import read_pt2
from workers.graph.groups import Groups, find_groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.lifting import lift
from workers.graph.surgery import remove
from workers.graph.unit_cost import Kept
from workers.journal import Silent
from workers.pruning.calibration import Calibration
from workers.pruning.repair.refit import RefitReport, Ridge, refit
from workers.training.data import Scaling, Split

AMPLE = 2**28
SILENT = Silent()


def lifted(network: nn.Module, x: Tensor) -> LayerGraph:
    """`network` as a job gets it, with a dynamic batch."""
    with tempfile.TemporaryDirectory() as folder:
        return lift(read_pt2(export(network, (x,), Path(folder) / "network.pt2")))


def drawn(network: nn.Module, seed: int = 0) -> nn.Module:
    """`network` with statistics of batch norms as after training."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
            layer.bias.data.normal_(0, 0.2, generator=generator)
    return network


@dataclass(frozen=True)
class Subject:
    """A teacher, the units that go, and inputs."""

    teacher: LayerGraph
    groups: Groups
    selection: dict[str, list[int]]
    x: Tensor

    @property
    def kept(self) -> Kept:
        return self.groups.kept(self.selection)

    def student(self) -> LayerGraph:
        """As surgery leaves it."""
        return remove(self.teacher, self.selection, self.groups)

    @property
    def calibration(self) -> Calibration:
        rows = np.arange(len(self.x))
        return Calibration(Split(self.x.numpy(), None, rows, Scaling()), rows)

    def refit(self, student: LayerGraph, ridge: Ridge = 1e-3, **options: int) -> RefitReport:
        """`student` refitted in place."""
        given = {"memory_bytes": AMPLE, **options}
        return refit(self.teacher, student, self.groups, self.kept, self.calibration, ridge, journal=SILENT, **given)


def subject(network: nn.Module, shape: tuple[int, ...], examples: int = 150, share: float = 0.5) -> Subject:
    """`network` without a drawn share of the units of every group, and drawn inputs; float64."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((examples, *shape), generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        teacher = lifted(drawn(network.eval()).double(), x[:3].double())
    groups = find_groups(teacher)
    draw = np.random.default_rng(2)
    selection = {
        name: sorted(draw.permutation(group.num_units)[: int(share * group.num_units)].tolist())
        for name, group in groups.items()
    }
    return Subject(teacher, groups, selection, x)


def outputs(network: LayerGraph, x: Tensor) -> Tensor:
    """(B, K)."""
    with torch.no_grad():
        result = network(x.to(next(network.parameters()).dtype))
    return result[0] if isinstance(result, tuple) else result
