"""`data.safetensors`: the arrays of a dataset as tensors, read by their offsets, never mapped whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from workers.formats.arrays import Array, Arrays, Source, check_array_names, stream_rows
from workers.formats.safetensors_file import DTYPES, Entry, read_header


@contextmanager
def arrays_of(path: Path, scratch: Path, max_bytes: int) -> Iterator[Arrays]:  # noqa: ARG001  all formats are called alike
    """The arrays of a safetensors file. Raises `InputRejected` as `read_header` does."""
    header = read_header(path)
    check_array_names(header.tensors, path.name)
    yield Arrays({name: source_of(path, entry) for name, entry in header.tensors.items()})


def source_of(path: Path, entry: Entry) -> Source:
    """One tensor; bfloat16, which NumPy lacks, is widened to float32."""
    stored = np.dtype(DTYPES[entry.dtype][1])
    is_bfloat16 = entry.dtype == "BF16"

    def blocks() -> Iterator[Array]:
        with path.open("rb") as file:
            file.seek(entry.begin)
            for block in stream_rows(file, entry.shape, stored):
                yield widened(block) if is_bfloat16 else block

    return Source(entry.name, entry.shape, np.dtype("<f4") if is_bfloat16 else stored, blocks)


def widened(bits: Array) -> Array:
    """bfloat16 bits -> float32: they are the upper half of its bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
