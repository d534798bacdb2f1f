"""What is known of each layer: rows of what it reads and of what it is to say, of the examples that solve and judge."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import add

import numpy as np
from torch import Tensor

from workers.pruning.calibration import Calibration
from workers.pruning.repair.affine import picked
from workers.pruning.repair.gram import Gram
from workers.pruning.repair.readers import Reader
from workers.pruning.repair.regression import Evidence
from workers.pruning.repair.rows import Rows
from workers.pruning.repair.sampling import Sample, chunks

HELD_OUT = 5  # one example in so many
CHUNK = 2**22  # numbers that are made float64 at a time: 32 MB


@dataclass(frozen=True)
class Division:
    """The examples that layers are solved by, and those held out to judge it; few are not divided."""

    parts: tuple[Calibration, ...]

    @staticmethod
    def of(calibration: Calibration, seed: int) -> "Division":
        """A fifth held out, by seed."""
        order = np.random.default_rng([seed, 0x4E1D]).permutation(len(calibration))
        num_held = len(calibration) // HELD_OUT
        parts = [np.sort(part) for part in (order[num_held:], order[:num_held]) if len(part)]
        return Division(tuple(replace(calibration, positions=calibration.positions[part]) for part in parts))

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def num_batches(self, size: int) -> int:
        return sum(-(-len(part) // size) for part in self.parts)

    def batches(self, size: int, *, inputs: bool) -> Iterator[tuple[int, int, Tensor | None]]:
        """(part, number of examples, the examples where `inputs` are asked for); always in the same order."""
        for place, part in enumerate(self.parts):
            if inputs:
                yield from ((place, len(batch), batch.x) for batch in part.batches(size))
            else:
                yield from ((place, min(size, len(part) - start), None) for start in range(0, len(part), size))


@dataclass(frozen=True)
class Extent:
    """How many rows of a layer are looked at, and what solving by them takes."""

    reader: Reader
    rows: int

    @staticmethod
    def of(reader: Reader, examples: int, max_rows: int) -> "Extent":
        return Extent(reader, min(max_rows, math.ceil(reader.rows_per_example * examples)))

    @property
    def kind(self) -> type[Rows | Gram]:
        """Rows themselves where there are fewer of them than columns."""
        return Rows if self.rows < self.reader.channels[1] else Gram

    @property
    def num_bytes(self) -> int:
        """The memory that solving takes."""
        return self.kind.num_bytes(self.rows, *self.reader.channels)


class Collection:
    """The evidence on one layer, of each part of the examples."""

    def __init__(self, extent: Extent, division: Division, seed: int) -> None:
        self.extent, self.reader, self.seed = extent, extent.reader, seed
        self.examples = [len(part) for part in division.parts]
        self.samples: dict[int, Sample] = {}
        self.parts: dict[int, Evidence] = {}

    def update(self, part: int, examples: int, x: Tensor, z: Tensor) -> None:
        """Count a batch of `examples`: what the layer reads, and what it is to say."""
        affine, (groups, columns, _) = self.reader.affine, self.reader.channels
        read, aims = affine.columns(x), affine.outputs(z)
        for some in chunks(self.rows(part, examples, read.shape[: affine.row_axes(x)]), groups * columns, CHUNK):
            rows = some.to(x.device)
            x_RGK = picked(read, affine.row_axes(x), rows).reshape(len(rows), groups, -1)
            z_RGN = picked(aims, aims.dim() - 1, rows).reshape(len(rows), groups, -1)
            evidence = self.extent.kind.of(x_RGK, z_RGN)
            self.parts[part] = self.parts[part] + evidence if part in self.parts else evidence

    def rows(self, part: int, examples: int, places: Sequence[int]) -> Tensor:
        """Which rows of a batch are looked at, of all that there are at its `places`."""
        num_rows = math.prod(places)
        if part not in self.samples:
            total = num_rows * self.examples[part] // examples
            most = max(1, self.extent.rows * self.examples[part] // sum(self.examples))
            self.samples[part] = Sample(total, most, self.seed + part)
        return self.samples[part].of_next(num_rows)

    @cached_property
    def all(self) -> Evidence:
        """Of all examples."""
        return reduce(add, self.parts.values())

    @property
    def fitted(self) -> Evidence:
        """Of the examples that solutions are tried by."""
        return self.parts[0]

    @property
    def held_out(self) -> Evidence:
        """Of those that judge them: the same where there are too few to divide."""
        return self.parts[max(self.parts)]
