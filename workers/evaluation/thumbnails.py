"""Small pictures of inputs, for who looks at where models differ; only inputs that are images have one.

An image is (1 or 3 channels, height, width). Bytes are shown as they are; other values are stretched so that the
lowest of the shown images is black and the highest white.
"""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from workers.training.data import Split

LONGEST_SIDE = 64  # pixels; larger ones are made smaller, smaller ones stay and are enlarged by who shows them
SHORTEST_SIDE = 4  # a "picture" of less is a table


def thumbnails(split: Split, places: Sequence[int]) -> dict[int, bytes]:
    """PNG files of the inputs at these places of a split, by place; none where inputs are no images."""
    channels, *sides = split.x.shape[1:]
    if split.scaling is None or len(sides) != 2 or channels not in (1, 3) or min(sides) < SHORTEST_SIDE:
        return {}
    images = [np.asarray(split.x[split.rows[place]]) for place in places]
    return {place: png(image) for place, image in zip(places, shown(images), strict=True)}


def shown(images: Sequence[npt.NDArray[np.generic]]) -> list[npt.NDArray[np.uint8]]:
    """The images in bytes: (channels, height, width) each."""
    if not images or images[0].dtype == np.uint8:
        return [image.astype(np.uint8) for image in images]
    values = np.nan_to_num(np.stack(images).astype(np.float64))
    low, high = float(values.min()), float(values.max())
    stretched = (values - low) / (high - low if high > low else 1.0)
    return list(np.rint(255 * stretched).astype(np.uint8))


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """A PNG file of (channels, height, width); the same image gives the same bytes."""
    picture = (
        Image.fromarray(image[0])
        if len(image) == 1
        else Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    )
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
