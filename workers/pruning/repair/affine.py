"""Dense layers and convolutions as one thing: rows of what they read, times a matrix.

A convolution multiplies every patch of its input by the same matrix; a transposed one does so with the patches of
its input spread out by zeros, and a grouped one for each group of channels by itself. So that all of them can be
solved for in the same way, each kind here says where its rows are and how its weight is a matrix.

Legend: B examples, C input and M output channels, S and O sizes of input and output, k sizes of the kernel,
G groups, R rows, K columns of one group (C / G times the kernel), N outputs of one group (M / G).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Dense:
    """(..., K) times a matrix: every vector along the last axis is a row."""

    groups = 1

    def columns(self, x: Tensor) -> Tensor:
        """The input, whose rows lie along all axes but the last: (..., K)."""
        return x

    def row_axes(self, x: Tensor) -> int:
        """How many axes of `columns(x)` are rows."""
        return x.dim() - 1

    def outputs(self, z: Tensor) -> Tensor:
        """A value like the layer's output with its channels last: (..., M)."""
        return z

    def sizes(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """G, K and N of a weight of `shape`."""
        return 1, shape[1], shape[0]

    def matrix(self, weight: Tensor) -> Tensor:
        """(M, K) -> (1, K, M)."""
        return weight.mT[None]

    def weight(self, matrix: Tensor, _shape: Sequence[int]) -> Tensor:
        """(1, K, M) -> (M, K)."""
        return matrix[0].mT


@dataclass(frozen=True)
class Convolution:
    """A convolution over one, two or three axes; all options are per axis.

    `spacing` is 1, or the stride of a transposed convolution: how far its input is spread out.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]  # zeros before and behind; a negative number crops
    dilation: tuple[int, ...]
    spacing: tuple[int, ...]
    groups: int
    transposed: bool

    def columns(self, x: Tensor) -> Tensor:
        """All patches of (B, C, *S) as a view (B, *O, C, *k), of the padded input and without a copy of it."""
        amounts = [amount for pair in reversed(self.padding) for amount in pair]
        padded = F.pad(spread_out(x, self.spacing), amounts)
        batch, channels, *sizes = padded.shape
        across, along, *steps = padded.stride()
        reach = [step * (size - 1) for step, size in zip(self.dilation, self.kernel, strict=True)]
        places = [(size - far - 1) // by + 1 for size, far, by in zip(sizes, reach, self.stride, strict=True)]
        return padded.as_strided(
            (batch, *places, channels, *self.kernel),
            (
                across,
                *(step * by for step, by in zip(steps, self.stride, strict=True)),
                along,
                *(step * by for step, by in zip(steps, self.dilation, strict=True)),
            ),
        )

    def row_axes(self, _x: Tensor) -> int:
        """How many axes of `columns(x)` are rows: the examples and the places."""
        return 1 + len(self.kernel)

    def outputs(self, z: Tensor) -> Tensor:
        """(B, M, *O) -> (B, *O, M)."""
        return z.movedim(1, -1)

    def sizes(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """G, K and N of a weight of `shape`."""
        if self.transposed:
            return self.groups, shape[0] // self.groups * math.prod(self.kernel), shape[1]
        return self.groups, math.prod(shape[1:]), shape[0] // self.groups

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight, (M, C / G, *k) or, transposed, (C, M / G, *k), as (G, K, N)."""
        if not self.transposed:
            return weight.reshape(self.groups, weight.shape[0] // self.groups, -1).mT
        turned = weight.flip(self.kernel_axes)
        turned = turned.reshape(self.groups, -1, *turned.shape[1:])
        return turned.movedim(2, -1).flatten(1, -2)

    def weight(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """(G, K, N) as a weight of `shape`."""
        if not self.transposed:
            return matrix.mT.reshape(tuple(shape))
        turned = matrix.reshape(len(matrix), -1, *self.kernel, matrix.shape[-1]).movedim(-1, 2)
        return turned.reshape(tuple(shape)).flip(self.kernel_axes)

    @property
    def kernel_axes(self) -> tuple[int, ...]:
        """The axes of the weight along which the kernel lies."""
        return tuple(range(2, 2 + len(self.kernel)))


Affine = Dense | Convolution


def spread_out(x: Tensor, spacing: Sequence[int]) -> Tensor:
    """(B, C, *S) with `spacing - 1` zeros between neighbours."""
    if all(step == 1 for step in spacing):
        return x
    sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], spacing, strict=True)]
    spread = x.new_zeros((*x.shape[:2], *sizes))
    places: tuple[slice | EllipsisType, ...] = (..., *(slice(None, None, step) for step in spacing))
    spread[places] = x
    return spread


def picked(view: Tensor, row_axes: int, rows: Tensor) -> Tensor:
    """Some rows of a view whose first axes are rows: (R, everything else)."""
    return view[torch.unravel_index(rows, view.shape[:row_axes])].flatten(1)


def convolution(kernel: Sequence[int], options: Mapping[str, Any], *, transposed: bool) -> Convolution:
    """A convolution by a layer's attributes or an operator's arguments: stride, padding, dilation, groups, ..."""
    sizes = len(kernel)
    stride, dilation = (per_axis(options[name], sizes) for name in ("stride", "dilation"))
    reach = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    ones = (1,) * sizes
    if transposed:
        before = [far - pad for far, pad in zip(reach, per_axis(options["padding"], sizes), strict=True)]
        behind = per_axis(options["output_padding"], sizes)
        padding = tuple((pad, pad + more) for pad, more in zip(before, behind, strict=True))
        return Convolution(tuple(kernel), ones, padding, dilation, stride, options["groups"], transposed=True)
    padding = tuple(paddings(options["padding"], reach))
    return Convolution(tuple(kernel), stride, padding, dilation, ones, options["groups"], transposed=False)


def per_axis(value: Any, axes: int) -> tuple[int, ...]:
    """An option for each axis, given as one number for all or as one for each."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def paddings(value: Any, reach: Sequence[int]) -> list[tuple[int, int]]:
    """Zeros before and behind each axis; "same" keeps sizes, and puts an odd one behind."""
    if value == "same":
        return [(far // 2, far - far // 2) for far in reach]
    return [(pad, pad) for pad in (per_axis(0 if value == "valid" else value, len(reach)))]
