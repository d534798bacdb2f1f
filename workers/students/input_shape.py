"""What a built-in architecture may be fed: the shape of one example, without its batch.

A convolutional network sees images `[C, H, W]`. Its strides and poolings shrink them, so each has a smallest
side below which a feature map would be empty; a user who goes below it is told that side, in place of an error
from deep inside a convolution.
"""

from collections.abc import Sequence
from math import prod


def num_features(name: str, input_shape: Sequence[int]) -> int:
    """The number of values in one example, for networks that flatten their input.

    Raises `ValueError` when a dimension is missing or not positive.
    """
    check_positive(name, input_shape)
    return prod(input_shape)


def image_shape(name: str, input_shape: Sequence[int], smallest: int = 1) -> tuple[int, int, int]:
    """`input_shape` as (channels, height, width), or `ValueError` naming the smallest side (in pixels)."""
    if len(input_shape) != 3:
        raise ValueError(
            f"{name} needs an input_shape of three numbers [channels, height, width], "
            f"and got {list(input_shape)}; add the dimension, as in [1, 28, 28] for grey images."
        )
    check_positive(name, input_shape)
    channels, height, width = input_shape
    if min(height, width) < smallest:
        raise ValueError(
            f"{name} needs images of at least {smallest} x {smallest} pixels, and got {height} x {width}; "
            f"use larger images or another architecture."
        )
    return channels, height, width


def check_positive(name: str, input_shape: Sequence[int]) -> None:
    """`ValueError` unless `input_shape` has dimensions and all are positive."""
    if not input_shape or min(input_shape) < 1:
        raise ValueError(
            f"{name} needs an input_shape of positive numbers, and got {list(input_shape)}; "
            f"give the shape of one example without its batch dimension."
        )
