"""Label arrays: which unit every index of every axis of a tensor belongs to.

A tensor of shape (B, 64, 32, 32) whose 64 channels are 64 units has the label array of shape (1, 64, 1, 1): one
label per channel, and size 1 on every axis on which the labels do not depend. Operators that only move elements
(reshape, permute, split, concatenate) act on the label array exactly as they act on the tensor. An axis "varies"
where the array has more than one index; an axis that does not vary cannot lose anything. `None` stands for a
tensor none of whose axes varies.

The label 0, PINNED, marks what is never removed. Labels of different numbers may turn out to be one unit: that is
for components.py to say.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

LabelArray = NDArray[np.int64]
Labels = LabelArray | None
Shape = tuple[int, ...]

PINNED = 0


def varying(labels: Labels) -> tuple[int, ...]:
    """The axes on which the labels depend."""
    return () if labels is None else tuple(axis for axis, size in enumerate(labels.shape) if size > 1)


def along(ids: LabelArray, axis: int, ndim: int) -> Labels:
    """One label per index of `axis` of a tensor of `ndim` axes."""
    return simplified(ids.reshape([-1 if other == axis % ndim else 1 for other in range(ndim)]))


def aligned(labels: Labels, ndim: int) -> Labels:
    """The labels as broadcasting sees them: more axes in front."""
    return None if labels is None else labels.reshape((1,) * (ndim - labels.ndim) + labels.shape)


def simplified(labels: LabelArray) -> Labels:
    """Without the dependence on axes along which all labels are the same; None where everything is pinned."""
    for axis in varying(labels):
        first = labels.take([0], axis)
        if (labels == first).all():
            labels = first
    return None if labels.size == 1 and labels.item() == PINNED else labels


def first_of(labels: LabelArray, axes: Sequence[int]) -> LabelArray:
    """The labels at index 0 of `axes`, which keep size 1."""
    for axis in axes:
        labels = labels.take([0], axis)
    return labels


def line(labels: LabelArray, axis: int) -> LabelArray:
    """The labels along `axis` at index 0 of all others; (size of the axis,)."""
    return first_of(labels, [other for other in varying(labels) if other != axis]).reshape(-1)


def spread(labels: LabelArray, shape: Shape, axes: Sequence[int]) -> LabelArray:
    """The labels written out on `axes` at the tensor's sizes."""
    sizes = [shape[axis] if axis in axes else size for axis, size in enumerate(labels.shape)]
    return np.broadcast_to(labels, sizes)


def reshaped(labels: Labels, before: Shape, after: Shape) -> Labels:
    """The labels after a row-major reshape from `before` to `after`.

    Only axes that are cut or merged with a varying one are written out: (B, 64, 8, 8) -> (B, 4096) gives an array
    of shape (1, 4096), not one for every element.
    """
    if labels is None:
        return None
    written: list[int] = []
    result: list[int] = []
    for old, new in segments(before, after):
        varies = any(labels.shape[axis] > 1 for axis in old)
        written += [before[axis] if varies else 1 for axis in old]
        result += [after[axis] if varies else 1 for axis in new]
    return simplified(np.broadcast_to(labels, written).reshape(result))


def segments(before: Shape, after: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """The finest pairs of runs of axes (old, new) that hold equally many elements."""
    if 0 in before or 0 in after:
        yield list(range(len(before))), list(range(len(after)))
        return
    start_old = start_new = 0
    while start_old < len(before) or start_new < len(after):
        end_old, end_new = min(start_old + 1, len(before)), min(start_new + 1, len(after))
        while math.prod(before[start_old:end_old]) != math.prod(after[start_new:end_new]):
            if math.prod(before[start_old:end_old]) < math.prod(after[start_new:end_new]):
                end_old += 1
            else:
                end_new += 1
        yield list(range(start_old, end_old)), list(range(start_new, end_new))
        start_old, start_new = end_old, end_new
