"""Networks of the zoo in float64 with calibration inputs, ready to be judged."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.architectures import ARCHIVES, export, exported, specimen
from tests.reference.groups import in_double
from tests.zoo.attention import WIDTH, Block, FusedAttention
from workers.formats.pt2_reader import read_pt2
from workers.graph.groups import Groups, find_groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.lifting import lift
from workers.journal import Silent
from workers.pruning.calibration import Calibration
from workers.pruning.reads import Read, find_reads
from workers.training.data import Scaling, Split

AMPLE = 2**28
SILENT = Silent()


@dataclass(frozen=True)
class Subject:
    network: LayerGraph
    groups: Groups
    reads: dict[str, tuple[Read, ...]]
    calibration: Calibration
    x: Tensor  # all calibration inputs, as the network takes them
    labels: Tensor | None

    @property
    def all(self) -> tuple[LayerGraph, Groups, dict[str, tuple[Read, ...]], Calibration]:
        return self.network, self.groups, self.reads, self.calibration


def calibration_of(x: np.ndarray, labels: np.ndarray | None) -> Calibration:
    rows = np.arange(len(x))
    return Calibration(Split(x, labels, rows, Scaling()), rows)


def judged(network: LayerGraph, x: np.ndarray, labels: np.ndarray | None) -> Subject:
    groups = find_groups(network)
    taken = torch.from_numpy(x).to(next(iter(network.inputs.values())).dtype)
    y = None if labels is None else torch.from_numpy(labels)
    return Subject(network, groups, dict(find_reads(groups)), calibration_of(x, labels), taken, y)


@functools.cache
def subject(name: str, examples: int = 5, *, labelled: bool = True) -> Subject:
    """`name` of the zoo with drawn weights, in evaluation mode, and inputs for it with drawn labels."""
    if name == "sentences":
        return sentences(examples)
    network = in_double(lift(read_pt2(exported(name)))).eval()
    example = specimen(name)[1][0]
    generator = np.random.default_rng(1)
    shape = (examples, *example.shape[1:])
    x = generator.standard_normal(shape).astype(np.float32)
    classes = network.outputs[0].example_shape[-1]
    return judged(network, x, generator.integers(0, classes, examples) if labelled else None)


def outputs(subject_: Subject) -> Tensor:
    with torch.no_grad():
        result = subject_.network(subject_.x)
    return result[0] if isinstance(result, tuple) else result


class Sentences(nn.Module):
    """(B, T) int64 tokens -> (B, 5): a transformer that classifies."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, WIDTH)
        self.block = Block(FusedAttention(causal=True))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.block(self.embed(tokens)).mean(1))


@functools.cache
def sentences(examples: int = 4) -> Subject:
    """A classifier of tokens, with inputs that are tokens."""
    tokens = torch.randint(1, 50, (3, 8), generator=torch.Generator().manual_seed(0))
    path = export(Sentences(), (tokens,), Path(ARCHIVES.name) / "sentences.pt2")
    network = in_double(lift(read_pt2(path))).eval()
    generator = np.random.default_rng(2)
    return judged(network, generator.integers(1, 50, (examples, 8)), generator.integers(0, 5, examples))
