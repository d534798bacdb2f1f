"""The tensors of a `.pt2` archive: views of its mapped records, without a copy.

A payload says which record, dtype, sizes, strides and offset; the record holds the little-endian elements of one
storage. Before a tensor is made, it is checked that every element that it names lies inside the record and that
no element has two indices: no stride of 0, no window that overlaps itself, nothing out of range. Names with the
same payload are one tensor, as they were before the export.

The mapping is copy-on-write, so that training in place is safe; only pages that are written cost memory.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from service.contract.errors import InputRejected
from workers.formats.pt2_archive import Archive, malformed
from workers.formats.pt2_schema import Payload, SymInt, TensorMeta

# torch's numbers of scalar types (torch/_export/serde/schema.py, ScalarType).
DTYPES: dict[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
}
STRIDED = 7
LARGEST_OFFSET = 2**48  # elements
MOST_VIEWS = 16  # times that all stored bytes may stand in different tensors


def dtype_of(number: int, where: str) -> torch.dtype:
    """The dtype that torch's `number` means; `InputRejected` for one that is not read."""
    if number not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES.values())
        raise InputRejected(
            f"{where[:120]} has scalar type {number}, which is not read; convert the model to one of {known}.",
            code="dtype_refused",
        )
    return DTYPES[number]


def read_tensors(archive: Archive, folder: str, payloads: Mapping[str, Payload]) -> dict[str, Tensor]:
    """Each name's tensor, parameters as `nn.Parameter`; names of one tensor have the same object."""
    read: dict[tuple[object, ...], Tensor] = {}
    tensors, claimed = {}, 0
    places = {f"{folder}/{payload.path_name}" for payload in payloads.values()}
    most = MOST_VIEWS * sum(len(archive.records.get(place, b"")) for place in places)
    for name, payload in payloads.items():
        meta = checked_meta(name, payload)
        sizes, strides = whole(meta.sizes, name), whole(meta.strides, name)
        offset = whole([meta.storage_offset], name)[0]
        key = (payload.path_name, meta.dtype, sizes, strides, offset, payload.is_param)
        if key not in read:
            record = archive.require(f"{folder}/{payload.path_name}")
            values = view(record, dtype_of(meta.dtype, name), sizes, strides, offset, name)
            claimed += values.numel() * values.itemsize
            if claimed > most:
                raise malformed(f"its tensors are views of each other that have more than {most} bytes together")
            read[key] = nn.Parameter(values, requires_grad=meta.requires_grad) if payload.is_param else values
        tensors[name] = read[key]
    return tensors


def checked_meta(name: str, payload: Payload) -> TensorMeta:
    """The description of a plain tensor; `InputRejected` for anything else."""
    if payload.use_pickle or payload.tensor_meta is None:
        raise InputRejected(
            f"{name[:120]!r} is stored as a pickled object, which Stillhouse never opens. Keep plain tensors in the "
            "model (no tensor subclasses, no custom objects) and export it again.",
            code="pickle_refused",
        )
    if payload.tensor_meta.layout != STRIDED:
        raise InputRejected(
            f"{name[:120]!r} is sparse or quantised; convert it with .to_dense() and export again.",
            code="layout_refused",
        )
    floating = dtype_of(payload.tensor_meta.dtype, name).is_floating_point
    complex_ = dtype_of(payload.tensor_meta.dtype, name).is_complex
    if payload.is_param and payload.tensor_meta.requires_grad and not (floating or complex_):
        raise malformed(f"{name[:120]!r} is an integer parameter that requires gradients")
    return payload.tensor_meta


def whole(sizes: Iterable[SymInt], name: str) -> tuple[int, ...]:
    """Plain sizes; a stored tensor has no symbolic ones."""
    numbers = tuple(size.as_int for size in sizes)
    plain = tuple(number for number in numbers if number is not None)
    if len(plain) != len(numbers) or any(not 0 <= number <= LARGEST_OFFSET for number in plain):
        raise malformed(f"the shape, strides or offset of {name[:120]!r} are no sizes")
    return plain


def view(
    record: memoryview, dtype: torch.dtype, sizes: tuple[int, ...], strides: tuple[int, ...], offset: int, name: str
) -> Tensor:
    """The elements of `record` that sizes, strides and offset (in elements) name, without a copy where possible."""
    if len(sizes) != len(strides):
        raise malformed(f"{name[:120]!r} has {len(sizes)} sizes and {len(strides)} strides")
    if 0 in sizes:
        return torch.empty(bounded_empty(sizes, name), dtype=dtype)
    reach = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + 1
    available = len(record) // dtype.itemsize
    if reach > available or len(record) % dtype.itemsize:
        raise malformed(f"{name[:120]!r} needs {reach} elements of {dtype}, but its record has {len(record)} bytes")
    if not is_injective(sizes, strides):
        raise malformed(
            f"the elements of {name[:120]!r} overlap each other; call .contiguous() on it before the export"
        )
    flat = aligned(record, dtype)
    return flat.as_strided(sizes, strides, offset) if sizes else flat[offset]


def bounded_empty(sizes: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The sizes of a tensor without elements, whose other sizes torch multiplies for its strides."""
    if math.prod(size for size in sizes if size) > LARGEST_OFFSET:
        raise malformed(f"the shape of {name[:120]!r} is beyond what a tensor can have")
    return sizes


def is_injective(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether no two indices name the same element: each stride steps over all that the smaller ones reach."""
    reached = 0
    for stride, size in sorted((stride, size) for size, stride in zip(sizes, strides, strict=True) if size > 1):
        if stride <= reached:
            return False
        reached += (size - 1) * stride
    return True


def aligned(record: memoryview, dtype: torch.dtype) -> Tensor:
    """All elements of a record in a row; torch aligns records, and one that is not is copied."""
    flat = torch.frombuffer(record, dtype=torch.uint8)
    if flat.data_ptr() % dtype.itemsize:
        flat = flat.clone()
    return flat.view(dtype)
