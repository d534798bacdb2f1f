"""`data.parquet`: a label column `y`, and either numeric columns or an `image` column of encoded pictures.

Numeric columns become float32 features in the order of the file. Rows are read in batches, one
thread, without mapping the file; what the footer declares is judged before the first row is read.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from service.contract.errors import InputRejected
from workers.formats.arrays import Array, Arrays, Source, rows_per_block
from workers.formats.pictures import (
    MAX_ENCODED_BYTES,
    Header,
    check_encoded_total,
    common_shape,
    decode,
    read_picture_header,
)

MAX_COLUMNS = 100_000
MAX_BATCH_ROWS = 65_536
PICTURES_PER_BATCH = 64
LABEL, IMAGE, TEXT = "y", "image", "text"


@contextmanager
def arrays_of(path: Path, scratch: Path, max_bytes: int) -> Iterator[Arrays]:  # noqa: ARG001  all formats are called alike
    """The features and labels of a Parquet file, open while the context is.

    Raises `InputRejected`: "truncated", "columns_refused", "missing_values", "not_available", and those of pictures.
    """
    with reading(path.name):
        file = pq.ParquetFile(path, memory_map=False, pre_buffer=False)
    with file:
        check_footer(path.name, file, max_bytes)
        yield Arrays(sources_of(path.name, file, path.stat().st_size))


@contextmanager
def reading(file_name: str) -> Iterator[None]:
    """Arrow's errors as `InputRejected`."""
    try:
        yield
    except MemoryError:  # Arrow's own is one of Arrow's exceptions too
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputRejected(
            f"{file_name} cannot be read as Parquet ({(str(error) or repr(error)).splitlines()[0][:200]}); "
            "it is damaged, cut short or of another format. Write it again and upload it whole.",
            code="truncated",
        ) from error


def check_footer(file_name: str, file: Any, max_bytes: int) -> None:
    """Judge number of columns and declared bytes."""
    metadata = file.metadata
    if metadata.num_columns > MAX_COLUMNS:
        raise InputRejected(f"{file_name} has {metadata.num_columns} columns; at most {MAX_COLUMNS}.", code="too_large")
    declared = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if declared > max_bytes:
        raise InputRejected(
            f"{file_name} unpacks to {declared} bytes; at most {max_bytes} are taken. Upload fewer rows.",
            code="too_large",
        )


def sources_of(file_name: str, file: Any, file_bytes: int) -> dict[str, Source]:
    """The arrays x and, where there is a label column, y."""
    schema, num_rows = file.schema_arrow, file.metadata.num_rows
    if len(set(schema.names)) != len(schema.names):
        raise InputRejected(f"{file_name} has two columns of one name.", code="columns_refused")
    if IMAGE in schema.names:
        check_others(file_name, schema, {IMAGE, LABEL})
        sources = {"x": picture_source(file_name, file, schema.field(IMAGE).type, file_bytes)}
    elif TEXT in schema.names:
        raise InputRejected(
            f"{file_name} has a text column; text is not available in this version. "
            "Use numeric columns or an image column.",
            code="not_available",
        )
    else:
        sources = {"x": feature_source(file_name, file, schema, num_rows)}
    if LABEL in schema.names:
        sources["y"] = label_source(file_name, file, schema.field(LABEL).type, num_rows)
    return sources


def check_others(file_name: str, schema: Any, known: set[str]) -> None:
    """Refuse columns beside the known ones."""
    others = [name for name in schema.names if name not in known]
    if others:
        raise InputRejected(
            f"{file_name} has the columns {', '.join(repr(name[:60]) for name in others[:10])} beside image and y; "
            "drop them (the label column is called y).",
            code="columns_refused",
        )


def is_number(kind: Any) -> bool:
    """Whether a column's type can be a feature."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def feature_source(file_name: str, file: Any, schema: Any, num_rows: int) -> Source:
    """All columns but y, as (rows, columns) float32."""
    names = [name for name in schema.names if name != LABEL]
    wrong = [f"{name[:60]!r} ({schema.field(name).type})" for name in names if not is_number(schema.field(name).type)]
    if wrong or not names:
        fault = f"columns {', '.join(wrong[:10])} are not numbers" if wrong else "there are no features"
        raise InputRejected(
            f"{file_name}: {fault}; expected numeric feature columns, or one image column, and the label column y.",
            code="columns_refused",
        )
    shape = (num_rows, len(names))

    def blocks() -> Iterator[Array]:
        for start, batch in batches(file_name, file, names, min(MAX_BATCH_ROWS, rows_per_block(shape, 4))):
            block = np.empty((batch.num_rows, len(names)), np.float32)
            for i, name in enumerate(names):
                block[:, i] = column_values(file_name, batch.column(i), name, start)
            yield block

    return Source("x", shape, np.dtype(np.float32), blocks)


def label_source(file_name: str, file: Any, kind: Any, num_rows: int) -> Source:
    """The column y as it is."""
    if not is_number(kind):
        raise InputRejected(
            f"{file_name}: the label column y has type {kind}; expected integers 0 to K - 1 (or floats for "
            "regression). Number the classes.",
            code="columns_refused",
        )
    dtype = np.dtype(bool) if pa.types.is_boolean(kind) else np.dtype(kind.to_pandas_dtype())

    def blocks() -> Iterator[Array]:
        for start, batch in batches(file_name, file, [LABEL], MAX_BATCH_ROWS):
            yield column_values(file_name, batch.column(0), LABEL, start)

    return Source("y", (num_rows,), dtype, blocks)


def batches(file_name: str, file: Any, columns: list[str], batch_size: int) -> Iterator[tuple[int, Any]]:
    """Batches of rows with the number of their first row; a file with other than its declared rows is refused."""
    start = 0
    with reading(file_name):
        for batch in file.iter_batches(batch_size=batch_size, columns=columns, use_threads=False):
            yield start, batch.select(columns)
            start += batch.num_rows
    if start != file.metadata.num_rows:
        raise InputRejected(
            f"{file_name} declares {file.metadata.num_rows} rows and holds {start}. Upload it whole.", code="truncated"
        )


def column_values(file_name: str, column: Any, name: str, start: int) -> Array:
    """A column of numbers as an array; empty cells are refused."""
    if column.null_count:
        row = start + next(i for i, valid in enumerate(column.is_valid().to_pylist()) if not valid)
        raise InputRejected(
            f"{file_name}: column {name!r} has empty cells, the first in row {row}; fill them or drop the rows.",
            code="missing_values",
        )
    values: Array = column.to_numpy(zero_copy_only=False)
    return values


def picture_source(file_name: str, file: Any, kind: Any, file_bytes: int) -> Source:
    """The column of encoded pictures: bytes, or a struct with bytes as the Hugging Face hub writes it."""
    if not is_encoded(kind):
        raise InputRejected(
            f"{file_name}: the image column has type {kind}; expected encoded PNG or JPEG bytes.",
            code="columns_refused",
        )
    shape = common_shape(picture_headers(file_name, file, file_bytes))
    all_shape = (file.metadata.num_rows, *shape)

    def blocks() -> Iterator[Array]:
        step = min(PICTURES_PER_BATCH, rows_per_block(all_shape, 1))
        for start, batch in batches(file_name, file, [IMAGE], step):
            encoded = encoded_pictures(file_name, batch.column(0), start)
            yield np.stack([decode(data, f"the picture in row {row}", shape) for row, data in encoded])

    return Source("x", all_shape, np.dtype(np.uint8), blocks)


def is_encoded(kind: Any) -> bool:
    """Whether a column's type can hold encoded pictures."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and is_encoded(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def picture_headers(file_name: str, file: Any, file_bytes: int) -> Iterator[Header]:
    """The header of every picture in the column; one that is written once may stand in a billion rows."""
    total = 0
    for start, batch in batches(file_name, file, [IMAGE], PICTURES_PER_BATCH):
        for row, data in encoded_pictures(file_name, batch.column(0), start):
            total += len(data)
            check_encoded_total(file_name, total, file_bytes)
            yield read_picture_header(io.BytesIO(data), f"the picture in row {row}")


def encoded_pictures(file_name: str, column: Any, start: int) -> list[tuple[int, bytes]]:
    """Row numbers and encoded bytes of a batch."""
    if pa.types.is_struct(column.type):
        column = column.field("bytes")
    encoded = list(enumerate(column.to_pylist(), start))
    for row, data in encoded:
        if data is None or len(data) > MAX_ENCODED_BYTES:
            raise InputRejected(
                f"{file_name}: row {row} has no picture in it, or one of over {MAX_ENCODED_BYTES} bytes.",
                code="missing_values",
            )
    return encoded
