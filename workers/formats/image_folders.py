"""`images.zip`: one folder of pictures per class, `cat/1.png`, or per split and class, `train/cat/1.png`.

Classes are numbered in the sorted order of their folders' names, over all splits. A single folder
around everything is looked through; folders and the hidden files of desktops are left out; any
other file is refused, because a picture that is left out silently would be missed too late.
"""

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from service.contract.errors import InputRejected
from workers.formats import archive
from workers.formats.arrays import Array, Arrays, Source, rows_per_block
from workers.formats.pictures import (
    MAX_ENCODED_BYTES,
    Header,
    check_encoded_total,
    common_shape,
    decode,
    read_picture_header,
)

MAX_PICTURES = 1_000_000
MAX_CLASSES = 100_000
SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
SUFFIXES = {".png", ".jpg", ".jpeg"}
DESKTOP_FILES = {"Thumbs.db", "desktop.ini"}
LAYOUT = "expected class/picture.png, or train/class/picture.png (and validation, test)"


@dataclass(frozen=True)
class Picture:
    """A member of the archive, where it belongs."""

    member: zipfile.ZipInfo
    split: str | None
    label: str


@contextmanager
def arrays_of(path: Path, scratch: Path, max_bytes: int) -> Iterator[Arrays]:  # noqa: ARG001  all formats are called alike
    """The pictures and classes of an archive, open while the context is.

    Raises `InputRejected`: "layout_refused", "image_refused", "image_too_large", "image_sizes_differ", "too_large".
    """
    with archive.opened(path, max_entries=MAX_PICTURES) as file:
        pictures = sorted(placed(path.name, file), key=lambda picture: picture.member.filename)
        classes = sorted({picture.label for picture in pictures})
        if len(classes) > MAX_CLASSES:
            raise InputRejected(f"{path.name} has {len(classes)} classes; at most {MAX_CLASSES}.", code="too_large")
        check_encoded_sizes(pictures)
        check_encoded_total(path.name, sum(p.member.file_size for p in pictures), path.stat().st_size)
        shape = common_shape(header_of(file, picture.member) for picture in pictures)
        sources: dict[str, Source] = {}
        for split in sorted({picture.split or "" for picture in pictures}):
            chosen = [picture for picture in pictures if (picture.split or "") == split]
            suffix = f"_{split}" if split else ""
            sources[f"x{suffix}"] = pixel_source(f"x{suffix}", file, chosen, shape)
            sources[f"y{suffix}"] = label_source(f"y{suffix}", chosen, classes)
        yield Arrays(sources, tuple(classes))


def header_of(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> Header:
    """Size and colour of one picture, from its first bytes."""
    with file.open(member) as data:
        return read_picture_header(cast("BinaryIO", data), member.filename)


def placed(file_name: str, file: zipfile.ZipFile) -> list[Picture]:
    """Every picture with its split and class."""
    members = [m for m in file.infolist() if not m.is_dir() and not is_hidden(m.filename)]
    paths = [m.filename.split("/") for m in members]
    if paths and len({p[0] for p in paths}) == 1 and any(len(p) > 2 for p in paths) and not is_split_level(paths):
        paths = [p[1:] for p in paths]  # one folder around everything
    by_split = is_split_level(paths)
    for parts in paths:
        if len(parts) != (3 if by_split else 2) or Path(parts[-1]).suffix.lower() not in SUFFIXES:
            raise InputRejected(
                f"{file_name} holds {'/'.join(parts)[:200]!r}; {LAYOUT}, PNG or JPEG, and nothing else.",
                code="layout_refused",
            )
    return [
        Picture(member, SPLIT_FOLDERS[parts[0]] if by_split else None, parts[-2])
        for member, parts in zip(members, paths, strict=True)
    ]


def is_split_level(paths: Sequence[Sequence[str]]) -> bool:
    """Whether the first folders are names of splits and not of classes."""
    return bool(paths) and all(len(parts) == 3 and parts[0] in SPLIT_FOLDERS for parts in paths)


def is_hidden(name: str) -> bool:
    """Whether a member is one of the files that desktops leave behind."""
    parts = name.split("/")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts) or parts[-1] in DESKTOP_FILES


def check_encoded_sizes(pictures: Sequence[Picture]) -> None:
    """Refuse a picture whose encoded bytes are too many to hold."""
    for picture in pictures:
        if picture.member.file_size > MAX_ENCODED_BYTES:
            raise InputRejected(
                f"{picture.member.filename} has {picture.member.file_size} bytes; at most {MAX_ENCODED_BYTES}.",
                code="image_too_large",
            )


def pixel_source(name: str, file: zipfile.ZipFile, pictures: Sequence[Picture], shape: tuple[int, int, int]) -> Source:
    """The pictures of one split, decoded block by block."""
    all_shape = (len(pictures), *shape)

    def blocks() -> Iterator[Array]:
        step = rows_per_block(all_shape, 1)
        for start in range(0, len(pictures), step):
            members = [picture.member for picture in pictures[start : start + step]]
            yield np.stack([decode(file.read(member), member.filename, shape) for member in members])

    return Source(name, all_shape, np.dtype(np.uint8), blocks)


def label_source(name: str, pictures: Sequence[Picture], classes: Sequence[str]) -> Source:
    """The number of each picture's class."""
    numbers = {label: number for number, label in enumerate(classes)}
    labels = np.array([numbers[picture.label] for picture in pictures], np.int64)
    return Source(name, labels.shape, labels.dtype, lambda: iter([labels]))
