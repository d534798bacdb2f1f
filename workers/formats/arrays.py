"""Arrays that are read block by block: what every dataset format becomes before it is written anew.

A `Source` promises a shape and a type before any of its data is read, and then yields consecutive
rows, each block a bounded number of bytes, so that an array larger than memory passes through.
The .npy header is parsed here from at most a few kilobytes; its own length field is not trusted.
"""

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from service.contract.errors import InputRejected

Array = npt.NDArray[Any]

BLOCK_BYTES = 8 * 2**20
MAX_EXAMPLE_BYTES = 256 * 2**20
MAX_NPY_HEADER_BYTES = 2**14
MAX_AXES = 8
NPY_MAGIC = b"\x93NUMPY"
SPLITS = ("train", "validation", "test")
NAMES = ("x", "y", *(f"{axis}_{split}" for split in SPLITS for axis in "xy"))


@dataclass(frozen=True)
class Source:
    """An array by its declared shape and type, whose data has not been read yet."""

    name: str  # "x", "y_train", …
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Callable[[], Iterator[Array]]  # consecutive rows, (n, *shape[1:]), together shape[0] of them

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole array."""
        return prod(self.shape) * self.dtype.itemsize

    def whole(self) -> Array:
        """All rows at once, for arrays that fit into memory, such as labels."""
        blocks = list(self.blocks())
        return np.concatenate(blocks) if blocks else np.empty(self.shape, self.dtype)


@dataclass(frozen=True)
class NpyHeader:
    """What precedes the data of a .npy file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    length: int  # bytes before the data


@dataclass(frozen=True)
class Arrays:
    """What one dataset file holds, ready to be read."""

    sources: Mapping[str, Source]  # by name, of NAMES
    classes: tuple[str, ...] | None = None  # names of the classes, where the file has them


def check_array_names(names: Iterable[str], what: str) -> None:
    """Refuse arrays of names that have no role."""
    wrong = sorted(set(names) - set(NAMES))
    if wrong:
        raise InputRejected(
            f"{what} holds {', '.join(repr(name[:100]) for name in wrong[:10])}; "
            f"expected only arrays named {', '.join(NAMES)}. Name them: numpy.savez(file, x=…, y=…).",
            code="unexpected_array",
        )


def rows_per_block(shape: tuple[int, ...], itemsize: int) -> int:
    """How many rows fit into a block, at least one."""
    return max(1, BLOCK_BYTES // max(1, prod(shape[1:]) * itemsize))


def stream_rows(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[Array]:
    """Blocks of rows from raw row-major bytes. Raises `InputRejected` ("truncated") when they end early."""
    step, row_bytes = rows_per_block(shape, dtype.itemsize), prod(shape[1:]) * dtype.itemsize
    for start in range(0, shape[0], step):
        num_rows = min(step, shape[0] - start)
        raw = read_exactly(file, num_rows * row_bytes)
        if len(raw) != num_rows * row_bytes:
            raise InputRejected(
                f"The data ends within row {start + len(raw) // max(1, row_bytes)} of {shape[0]}. "
                "Upload the file whole.",
                code="truncated",
            )
        yield np.frombuffer(raw, dtype).reshape(num_rows, *shape[1:])


def read_exactly(file: IO[bytes], size: int) -> bytes:
    """Up to `size` bytes, fewer only at the end of the file."""
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def read_npy_header(file: IO[bytes], name: str) -> NpyHeader:
    """Parse the header of a .npy file (NumPy's format, versions 1 and 2) and judge its type and shape.

    Raises `InputRejected`: "object_array_refused", "dtype_refused", "npy_refused", "truncated".
    """
    start = file.read(8)
    if len(start) < 8 or not start.startswith(NPY_MAGIC) or start[6] not in {1, 2}:
        raise InputRejected(f"{name} is not a .npy array; write it with numpy.savez.", code="npy_refused")
    size_bytes = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(size_bytes), "little")
    if length > MAX_NPY_HEADER_BYTES:
        raise InputRejected(
            f"{name} declares a header of {length} bytes; at most {MAX_NPY_HEADER_BYTES} are taken.", code="too_large"
        )
    text = read_exactly(file, length)
    if len(text) < length:
        raise InputRejected(f"{name} ends within its header. Upload the file whole.", code="truncated")
    shape, dtype, fortran_order = parse_npy_fields(text, name)
    return NpyHeader(shape, dtype, fortran_order, 8 + size_bytes + length)


def parse_npy_fields(text: bytes, name: str) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, type and order from the header's dictionary literal."""
    try:
        fields = ast.literal_eval(text.decode("latin1"))
        descr, order, shape = fields["descr"], fields["fortran_order"], fields["shape"]
        if len(fields) != 3 or not isinstance(descr, str) or type(order) is not bool:
            raise ValueError("unexpected fields")  # noqa: TRY301  one place translates all that is wrong with the text
        dtype = np.dtype(descr)
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise InputRejected(
            f"{name} has a header that cannot be read; expected an array of plain numbers. Write it with numpy.savez.",
            code="npy_refused",
        ) from error
    if not isinstance(shape, tuple) or len(shape) > MAX_AXES or not all(is_size(n) for n in shape):
        raise InputRejected(f"{name} has the impossible shape {str(shape)[:200]}.", code="npy_refused")
    check_dtype(dtype, name)
    return shape, dtype, order


def is_size(value: Any) -> bool:
    """Whether a value can be the length of an axis."""
    return type(value) is int and 0 <= value < 2**63


def check_dtype(dtype: np.dtype[Any], name: str) -> None:
    """Refuse types other than booleans, integers and floats of at most 64 bits."""
    if dtype.hasobject:
        raise InputRejected(
            f"{name} is an array of Python objects, which only a pickle can hold; nothing of it was read. "
            "Save numbers: numpy.savez(file, x=x.astype('float32'), y=y.astype('int64')).",
            code="object_array_refused",
        )
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise InputRejected(
            f"{name} has type {dtype}; expected booleans, integers or floats of at most 64 bits.",
            code="dtype_refused",
        )


def gathered_blocks(path: Path, header: NpyHeader) -> Iterator[Array]:
    """Blocks of rows of a column-major .npy file, of which a row is scattered over the whole file."""
    try:
        array = np.memmap(path, header.dtype, "r", header.length, header.shape, "F")
    except OSError as error:
        raise InputRejected(
            f"An array of shape {list(header.shape)} is stored column by column and is too large to be turned. "
            "Save it row by row: numpy.ascontiguousarray(x).",
            code="too_large",
        ) from error
    step = rows_per_block(header.shape, header.dtype.itemsize)
    for start in range(0, header.shape[0], step):
        yield np.ascontiguousarray(array[start : start + step])


def stored_blocks(path: Path) -> Iterator[Array]:
    """Blocks of rows of a row-major .npy file, read in order and never mapped: a jail counts mapped bytes."""
    with path.open("rb") as file:
        header = read_npy_header(file, path.name)
        yield from stream_rows(file, header.shape, header.dtype)


class ArrayWriter:
    """A .npy file of known shape, written block by block."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self.file = path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(self.file, header)

    def write(self, block: Array) -> None:
        """Append rows; they are converted to the file's type."""
        self.file.write(np.ascontiguousarray(block, self.dtype).data)

    def close(self) -> None:
        """The file is complete."""
        self.file.close()
