"""Scaling of inputs: the factor of integer images, and normalisation per channel, given or measured.

Mean and standard deviation are those of the training split alone, over all examples and positions of
a channel (the first axis of an example), in float64, block by block; blocks are merged by the exact
update of Chan, Golub and LeVeque (1979), so that nothing cancels however many rows there are.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from service.contract.errors import InputRejected
from service.contract.specs import Normalization
from workers.formats.arrays import stored_blocks
from workers.training.data import Scaling

# A channel that varies by less than float32 resolves is constant: it is centred, and divided by 1.
SMALLEST_RELATIVE_STD = 1e-7
MAX_CHANNELS = 100_000


def scale_factor(dtype: np.dtype[Any], example_shape: tuple[int, ...]) -> float:
    """1/255 for bytes, and for other integers in the shape of images (C, H, W); otherwise 1."""
    is_image = dtype.kind in "iu" and len(example_shape) == 3
    return 1 / 255 if is_image or dtype == np.uint8 else 1.0


def scaling_of(
    normalize: Literal["auto"] | Normalization | None,
    factor: float,
    x: Path,
    rows: npt.NDArray[np.int64],
    channels: int,
) -> Scaling:
    """Return the scaling of a dataset; `x` is its canonical .npy file, `rows` its training rows, ascending.

    Raises `InputRejected` with code "normalization_mismatch" or "too_large".
    """
    if normalize is None:
        return Scaling(factor)
    if normalize == "auto":
        if channels > MAX_CHANNELS:
            raise InputRejected(
                f"An example has {channels} channels; measuring is limited to {MAX_CHANNELS}. "
                "Give one mean and one std, or normalise before uploading.",
                code="too_large",
            )
        mean, std = channel_moments(x, rows, factor)
        return Scaling(factor, tuple(map(float, mean)), tuple(map(float, std)))
    if len(normalize.mean) not in {1, channels}:
        raise InputRejected(
            f"normalize has {len(normalize.mean)} entries and the inputs have {channels} channels; "
            'give one entry, or one per channel, or "auto".',
            code="normalization_mismatch",
        )
    check_resolved(normalize)
    return Scaling(factor, normalize.mean, normalize.std)


def check_resolved(normalize: Normalization) -> None:
    """Refuse numbers that float32 cannot hold."""
    with np.errstate(over="ignore"):
        mean, std = np.array(normalize.mean, np.float32), np.array(normalize.std, np.float32)
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > np.finfo(np.float32).tiny).all()):
        raise InputRejected(
            "normalize holds numbers that float32 cannot hold; give means and standard deviations of ordinary size.",
            code="normalization_mismatch",
        )


def channel_moments(
    path: Path, rows: npt.NDArray[np.int64], factor: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation (population) per channel of `factor` * x over ascending rows, each (channels,)."""
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    position = 0  # of the block's first row in the file
    for block in stored_blocks(path):
        first, last = np.searchsorted(rows, (position, position + len(block)))
        chosen = block[rows[first:last] - position]
        position += len(block)
        if not len(chosen):
            continue
        values = np.moveaxis(chosen, 1, 0).reshape(chosen.shape[1], -1).astype(np.float64) * factor
        block_count, block_mean = values.shape[1], values.mean(axis=1)
        delta, total = block_mean - mean, count + block_count
        squares = squares + ((values - block_mean[:, None]) ** 2).sum(axis=1) + delta**2 * (count * block_count / total)
        mean = mean + delta * (block_count / total)
        count = total
    std = np.sqrt(squares / count)
    return mean, np.where(std > SMALLEST_RELATIVE_STD * np.maximum(1.0, np.abs(mean)), std, 1.0)
