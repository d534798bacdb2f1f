"""What an analysis measures of units, by its definitions: one regression for each unit, one pair at a time."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.reference.criteria import corrected_information, counts_entropy
from workers.graph.layer_graph import LayerGraph
from workers.pruning.reads import Read, ReadingRun

Table = NDArray[np.float64]


def rows_of_units(network: LayerGraph, read: Read, x: Tensor) -> Table:
    """A row for each example, position and index of a unit, less the index's mean; a column for each unit."""
    values: list[Tensor] = []

    def listen(_: Read, value: Tensor) -> Tensor:
        values.append(value)
        return value

    with torch.no_grad():
        ReadingRun(network, {read.group: (read,)}, listen).run(x)
    columns = []
    for unit in read.present:
        parts = [values[0].select(read.axis, index).reshape(-1).double().numpy() for index in read.indices[unit]]
        columns.append(np.concatenate([part - part.mean() for part in parts]))
    return np.stack(columns, 1)


def explained(rows: Table, unit: int) -> float:
    """R² of the least-squares regression of one column on all others, with an intercept."""
    others = np.delete(rows, unit, axis=1)
    design = np.column_stack([others, np.ones(len(rows))])
    weights, *_ = np.linalg.lstsq(design, rows[:, unit], rcond=None)
    residual = rows[:, unit] - design @ weights
    spread = rows[:, unit] - rows[:, unit].mean()
    return float(1 - (residual @ residual) / (spread @ spread))


def information(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Plug-in I = H(A) + H(B) − H(A, B) of two rows of symbols."""
    return counts_entropy(one) + counts_entropy(other) - counts_entropy(np.stack([one, other], 1))


def information_by_chance(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """The same of each example of the one beside the example of the other that comes before it."""
    return information(one[1:], other[:-1])


def corrected_by_chance(one: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Miller–Madow information of each example's symbol and the label of the example before."""
    return corrected_information(one[1:], labels[:-1])
