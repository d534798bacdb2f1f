"""`data.npz`: a zip of .npy arrays, read without NumPy's loader, which trusts more than we do.

Every member's header is read first (a few kilobytes each); the shapes it declares, the length that
the table of contents declares and the sum of all of them must agree and stay within the limit
before any data is unpacked. Then the data stream through in blocks.
"""

import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

from service.contract.errors import InputRejected
from workers.formats import archive
from workers.formats.arrays import (
    Array,
    Arrays,
    NpyHeader,
    Source,
    check_array_names,
    gathered_blocks,
    read_npy_header,
    stream_rows,
)

SUFFIX = ".npy"
MAX_MEMBERS = 1000


@contextmanager
def arrays_of(path: Path, scratch: Path, max_bytes: int) -> Iterator[Arrays]:
    """The arrays of an .npz archive, open while the context is.

    Raises `InputRejected`; see `workers.formats.archive` and `workers.formats.arrays` for the codes.
    """
    with archive.opened(path, max_entries=MAX_MEMBERS) as file:
        check_array_names(map(array_name, file.namelist()), path.name)
        members = {array_name(member.filename): member for member in file.infolist()}
        declared = sum(member.file_size for member in members.values())
        if declared > max_bytes:
            raise InputRejected(
                f"{path.name} unpacks to {declared} bytes; at most {max_bytes} are taken. Upload fewer examples.",
                code="too_large",
            )
        yield Arrays({name: source_of(name, file, member, scratch) for name, member in members.items()})


def array_name(member_name: str) -> str:
    """`x.npy` -> `x`; a member of another kind keeps a name that is refused."""
    return member_name.removesuffix(SUFFIX) if member_name.endswith(SUFFIX) else f"{member_name} (no .npy)"


def source_of(name: str, file: zipfile.ZipFile, member: zipfile.ZipInfo, scratch: Path) -> Source:
    """One member, its header read and compared with what the archive declares."""
    with file.open(member) as data:
        header = read_npy_header(data, name)
    expected = header.length + prod(header.shape) * header.dtype.itemsize
    if expected != member.file_size:
        raise InputRejected(
            f"{name} declares shape {list(header.shape)} of {header.dtype}, {expected} bytes in all, "
            f"but the archive holds {member.file_size}. Write it anew with numpy.savez.",
            code="truncated" if expected > member.file_size else "npy_refused",
        )

    def blocks() -> Iterator[Array]:
        return member_blocks(file, member, header, scratch)

    return Source(name, header.shape, header.dtype, blocks)


def member_blocks(file: zipfile.ZipFile, member: zipfile.ZipInfo, header: NpyHeader, scratch: Path) -> Iterator[Array]:
    """The rows of one member. A column-major one is first unpacked to disk, where its rows can be gathered."""
    if header.fortran_order and len(header.shape) > 1:
        unpacked = scratch / f"{member.filename}.unpacked"
        with file.open(member) as data, unpacked.open("wb") as copy:
            shutil.copyfileobj(data, copy, 2**20)
        yield from gathered_blocks(unpacked, header)
        unpacked.unlink()
        return
    with file.open(member) as data:
        data.read(header.length)
        yield from stream_rows(data, header.shape, header.dtype)
        data.read(1)  # to the end of the member, where zipfile compares the checksum
