"""The inputs of a dataset: judged by their declared shapes, then written as one array `x.npy`.

Splits that came as separate arrays are laid one after another, so that every byte is stored once and
a split is a range of rows. The type stays as it came (booleans become bytes), in this machine's byte
order; finiteness and range are found in the same pass.

An int32 or int64 array (N, T) holds token ids: sequences, which an embedding looks up. They are never scaled or
normalised. Features that happen to be whole numbers come as floats, or as integers of another type.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from service.contract.errors import InputRejected
from workers.formats.arrays import MAX_EXAMPLE_BYTES, SPLITS, Array, Arrays, ArrayWriter, Source

MAX_EXAMPLE_AXES = 4
MAX_TOKEN = 2**31 - 1
UNQUESTIONED_BYTES = 2**30
MAX_EXPANSION = 256  # beyond that many bytes, for each byte of the file


@dataclass(frozen=True)
class Part:
    """Inputs and labels that came together: a named split, or (name None) everything."""

    split: str | None
    x: Source
    y: Source | None


def are_tokens(x: Source) -> bool:
    """Whether inputs are token ids: (N, T) of int32 or int64."""
    return len(x.shape) == 2 and x.dtype.kind == "i" and x.dtype.itemsize >= 4


@dataclass(frozen=True)
class Written:
    """What is known of `x.npy` once it is written."""

    example_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    low: int | float
    high: int | float


def parts_of(arrays: Arrays) -> list[Part]:
    """Pair inputs with labels, and check that they belong together.

    Raises `InputRejected`: "arrays_missing", "empty_split", "rows_mismatch", "labels_missing".
    """
    sources = arrays.sources
    one = "x" in sources
    names = [name for name in SPLITS if f"x_{name}" in sources]
    if one and (names or any(f"y_{name}" in sources for name in SPLITS)):
        raise InputRejected(
            f"The file holds x beside {', '.join(sorted(set(sources) - {'x', 'y'}))}; give either x and y, to be "
            "divided, or x_train, y_train, x_validation, y_validation, x_test, y_test.",
            code="arrays_missing",
        )
    if not one and "train" not in names:
        raise InputRejected(
            f"The file holds {', '.join(sorted(sources)) or 'no array'}; expected x, or x_train "
            "(with x_validation and x_test, or to be divided).",
            code="arrays_missing",
        )
    if one:
        parts = [Part(None, sources["x"], sources.get("y"))]
    else:
        parts = [Part(name, sources[f"x_{name}"], sources.get(f"y_{name}")) for name in names]
    check_stray_labels(parts, sources)
    for part in parts:
        check_rows(part)
    return parts


def check_stray_labels(parts: Sequence[Part], sources: Any) -> None:
    """Refuse labels without inputs, and splits without labels beside a labelled training split."""
    used = {source.name for part in parts for source in (part.x, part.y) if source is not None}
    if stray := sorted(set(sources) - used):
        raise InputRejected(f"{', '.join(stray)} has no inputs beside it; add them or drop it.", code="arrays_missing")
    without = [part.x.name for part in parts if part.y is None]
    if parts[0].y is not None and without:
        raise InputRejected(
            f"y_train is there, and {', '.join(name.replace('x', 'y', 1) for name in without)} is missing; label "
            "these splits too, or leave them out, and they are divided off the training split.",
            code="labels_missing",
        )


def check_rows(part: Part) -> None:
    """Refuse arrays without rows, and labels of another number than the inputs."""
    if not part.x.shape or part.x.shape[0] == 0:
        raise InputRejected(
            f"{part.x.name} is empty (shape {list(part.x.shape)}); expected at least one example.", code="empty_split"
        )
    if part.y is not None and (not part.y.shape or part.y.shape[0] != part.x.shape[0]):
        raise InputRejected(
            f"{part.x.name} has {part.x.shape[0]} rows and {part.y.name} has shape {list(part.y.shape)}; "
            "expected one row of labels for each input.",
            code="rows_mismatch",
        )
    if part.y is not None and 0 in part.y.shape:
        raise InputRejected(
            f"{part.y.name} has shape {list(part.y.shape)}: its rows are empty. Expected a label in each.",
            code="labels_shape",
        )


def example_shape(x: Source) -> tuple[int, ...]:
    """Shape of one example: (F,), (C, H, W), …; pictures without a channel axis get one.

    Raises `InputRejected` with code "shape_refused" or "too_large".
    """
    shape = x.shape[1:]
    if not 1 <= len(shape) <= MAX_EXAMPLE_AXES or 0 in shape:
        raise InputRejected(
            f"{x.name} has shape {list(x.shape)}; expected (N, features), (N, H, W) or (N, C, H, W), no axis empty. "
            "Reshape it: x.reshape(len(x), -1).",
            code="shape_refused",
        )
    if prod(shape) * x.dtype.itemsize > MAX_EXAMPLE_BYTES:
        raise InputRejected(
            f"One example of {x.name} has {prod(shape) * x.dtype.itemsize} bytes; at most {MAX_EXAMPLE_BYTES}.",
            code="too_large",
        )
    return (1, *shape) if len(shape) == 2 else shape


def check_alike(parts: Sequence[Part]) -> None:
    """Refuse splits whose inputs differ in shape or type."""
    first = parts[0].x
    for part in parts[1:]:
        if part.x.shape[1:] != first.shape[1:] or part.x.dtype != first.dtype:
            raise InputRejected(
                f"{first.name} holds examples of shape {list(first.shape[1:])} and type {first.dtype}, {part.x.name} "
                f"of shape {list(part.x.shape[1:])} and type {part.x.dtype}; all splits must be alike.",
                code="shape_mismatch",
            )


def check_total(parts: Sequence[Part], max_bytes: int, file_bytes: int) -> None:
    """Refuse more bytes than are taken, or than a file of that size can honestly hold, by the declared shapes."""
    total = sum(source.num_bytes for part in parts for source in (part.x, part.y) if source is not None)
    if total > max_bytes:
        raise InputRejected(
            f"The arrays have {total} bytes once unpacked; at most {max_bytes} are taken. Upload fewer examples.",
            code="too_large",
        )
    if total > max(UNQUESTIONED_BYTES, MAX_EXPANSION * file_bytes):
        raise InputRejected(
            f"The arrays have {total} bytes once unpacked, and the file has {file_bytes}; at most {MAX_EXPANSION} are "
            "taken for each. Save the arrays with less compression, or without.",
            code="too_large",
        )


def write_inputs(parts: Sequence[Part], path: Path) -> Written:
    """Write all inputs, one part after another, and return what was found. `InputRejected`: "not_finite"."""
    check_alike(parts)
    source = parts[0].x
    shape = example_shape(source)
    dtype = np.dtype(np.uint8) if source.dtype.kind == "b" else source.dtype.newbyteorder("=")
    writer = ArrayWriter(path, (sum(part.x.shape[0] for part in parts), *shape), dtype)
    lows, highs = [], []
    try:
        for part in parts:
            for block in checked_blocks(part.x):
                lows.append(block.min())
                highs.append(block.max())
                writer.write(block)
    finally:
        writer.close()
    written = Written(shape, dtype, number(min(lows)), number(max(highs)))
    if are_tokens(source):
        check_tokens(source, written)
    return written


def check_tokens(x: Source, written: Written) -> None:
    """Refuse integers that cannot be ids of tokens."""
    if written.low < 0 or written.high > MAX_TOKEN:
        odd = written.low if written.low < 0 else written.high
        raise InputRejected(
            f"{x.name} holds {odd}. An array of {x.dtype} and shape (N, T) is read as token ids, 0 to {MAX_TOKEN}; "
            "save features as floats: x.astype('float32').",
            code="tokens_refused",
        )


def number(value: Any) -> int | float:
    """A NumPy scalar as Python's own number; booleans count as 0 and 1."""
    return int(value) if value.dtype.kind in "biu" else float(value)


def checked_blocks(x: Source) -> Any:
    """The blocks of a source; at its end, `InputRejected` when any value was not finite as float32."""
    num_bad, first_bad, position = 0, -1, 0
    for block in x.blocks():
        if block.dtype.kind == "f" and (bad := not_finite(block)).any():
            first_bad = position + int(bad.reshape(len(bad), -1).any(axis=1).argmax()) if num_bad == 0 else first_bad
            num_bad += int(bad.sum())
        position += len(block)
        yield block
    if num_bad:
        raise InputRejected(
            f"{x.name} holds {num_bad} values that are NaN or infinite (as float32), the first in row {first_bad}; "
            "expected finite numbers. Drop these rows or fill the values.",
            code="not_finite",
        )


def not_finite(block: Array) -> Any:
    """Where a block is not finite as float32."""
    with np.errstate(over="ignore"):  # overflow is what is looked for
        return ~np.isfinite(block.astype(np.float32, copy=False))
