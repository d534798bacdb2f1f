"""The safetensors format: eight bytes of length, a JSON header, then raw little-endian tensors.

The header is checked here before any library maps the file: its length, its keys (no repetition),
the number of tensors, their types, and that their bytes follow one another without gap or overlap
up to the end of the file. The writer is ours too, because the bytes of an artifact must depend on
the tensors alone: sorted keys, sorted metadata, offsets in that order.

Format: https://huggingface.co/docs/safetensors#format
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from service.contract.errors import InputRejected

MAX_HEADER_BYTES = 16 * 2**20
MAX_ENTRIES = 100_000
MAX_AXES = 8
METADATA = "__metadata__"

# Safetensors' name of a type: bytes per element, and numpy's name (bfloat16 has none: its bits are uint16).
DTYPES: Mapping[str, tuple[int, str]] = {
    "BOOL": (1, "|b1"),
    "U8": (1, "|u1"),
    "I8": (1, "|i1"),
    "U16": (2, "<u2"),
    "I16": (2, "<i2"),
    "U32": (4, "<u4"),
    "I32": (4, "<i4"),
    "U64": (8, "<u8"),
    "I64": (8, "<i8"),
    "F16": (2, "<f2"),
    "BF16": (2, "<u2"),
    "F32": (4, "<f4"),
    "F64": (8, "<f8"),
}

NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}


@dataclass(frozen=True)
class Entry:
    """One tensor: where its bytes lie in the file."""

    name: str
    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file
    end: int


@dataclass(frozen=True)
class Header:
    """A header that was found sound."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


def refuse(path: Path, fault: str, code: str = "safetensors_refused") -> NoReturn:
    """Raise `InputRejected` with what is wrong with the file."""
    raise InputRejected(
        f"{path.name} is not a sound safetensors file: {fault}. Write it with safetensors' save_file.", code=code
    )


def read_header(path: Path) -> Header:
    """Return the checked header of a safetensors file, without touching its tensors.

    Raises `InputRejected`: "truncated", "too_large" (header or number of tensors), "safetensors_refused".
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 10:
            refuse(path, f"it has {size} bytes", "truncated")
        if length > MAX_HEADER_BYTES:
            refuse(
                path, f"it declares a header of {length} bytes, and at most {MAX_HEADER_BYTES} are taken", "too_large"
            )
        if 8 + length > size:
            refuse(path, f"its header should have {length} bytes, but the file ends at {size}", "truncated")
        raw = file.read(length)
    fields = parse_header(path, raw)
    metadata = checked_metadata(path, fields.pop(METADATA, {}))
    if len(fields) > MAX_ENTRIES:
        refuse(path, f"it has {len(fields)} tensors, and at most {MAX_ENTRIES} are taken", "too_large")
    entries = [checked_entry(path, name, field, 8 + length) for name, field in fields.items()]
    check_layout(path, entries, 8 + length, size)
    return Header({entry.name: entry for entry in entries}, metadata)


def parse_header(path: Path, raw: bytes) -> dict[str, Any]:
    """The header as a dictionary; repeated keys are refused, which `json` alone would merge silently."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) > MAX_ENTRIES + 1:
            refuse(path, f"it has {len(pairs)} tensors, and at most {MAX_ENTRIES} are taken", "too_large")
        fields = dict(pairs)
        if len(fields) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add returns None
            refuse(path, f"the key {twice[:200]!r} occurs twice in its header")
        return fields

    try:
        fields = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        refuse(path, f"its header is not JSON ({str(error)[:200]})")
    if not isinstance(fields, dict):
        refuse(path, "its header is not a JSON object")
    return fields


def checked_metadata(path: Path, metadata: Any) -> dict[str, str]:
    """The free text of the header."""
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        refuse(path, f"{METADATA} must map text to text")
    return metadata


def checked_entry(path: Path, name: str, field: Any, start: int) -> Entry:
    """One tensor's entry; `start` is where the tensors begin in the file."""
    if not isinstance(field, dict) or set(field) != {"dtype", "shape", "data_offsets"}:
        refuse(path, f"the entry of {name[:200]!r} must have dtype, shape and data_offsets and nothing else")
    dtype, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        refuse(path, f"{name[:200]!r} has type {dtype!r}; taken are {', '.join(DTYPES)}", "dtype_refused")
    if not is_sizes(shape) or len(shape) > MAX_AXES or not is_sizes(offsets) or len(offsets) != 2:
        refuse(path, f"{name[:200]!r} needs a shape of at most {MAX_AXES} sizes and two data_offsets")
    begin, end = offsets
    if end - begin != prod(shape) * DTYPES[dtype][0]:
        refuse(path, f"{name[:200]!r} of shape {shape} and type {dtype} cannot have {end - begin} bytes")
    return Entry(name, dtype, tuple(shape), start + begin, start + end)


def is_sizes(values: Any) -> bool:
    """Whether `values` is a list of whole numbers from 0 to 2^63 - 1."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def check_layout(path: Path, entries: list[Entry], start: int, size: int) -> None:
    """The tensors' bytes must fill the rest of the file, each byte once."""
    position = start
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != position:
            refuse(path, f"the bytes of {entry.name[:200]!r} overlap others or leave a gap")
        position = entry.end
    if position > size:
        refuse(path, f"its tensors need {position} bytes, but the file ends at {size}", "truncated")
    if position < size:
        refuse(path, f"{size - position} bytes follow its last tensor")


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors as safetensors; the same tensors and metadata give the same bytes.

    Larger elements come first, so that every tensor is aligned to its own type as the format asks.
    """
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    fields: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for name in ordered:
        tensor = tensors[name]
        end = position + tensor.numel() * tensor.element_size()
        fields[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    header = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in ordered:
            file.write(raw_bytes(tensors[name]))


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's elements in row-major order, as little-endian bytes."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def state_without_aliases(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A model's state with every shared tensor once, and which name stands for each left-out one.

    The second goes into the metadata as safetensors' own `save_model` puts it there, so that its
    `load_model` restores the sharing.
    """
    kept: dict[str, Tensor] = {}
    names: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in sorted(model.state_dict().items()):
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in names:
            aliases[name] = names[place]
        else:
            names[place] = name
            kept[name] = tensor
    return kept, aliases
