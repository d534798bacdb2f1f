"""The zip container of a `.pt2` archive, read by rules stricter than zip's.

A zip file may hold records that overlap, that expand a thousandfold, that are named twice or `../../etc`, and two
readers may see two different archives in it. torch writes none of that, so none of it is read: every record is
stored uncompressed, the records lie one behind the other from the first byte of the file to the directory, local
and central headers agree, names are unique and of the kinds that torch writes. Then the contents of a record are
simply a range of the file, which is mapped into memory, not read.

    archive := record*  directory  [zip64 end and its locator]  end
    record  := local header, name, padding, contents, [data descriptor]

Source of the layout: PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3.
"""

import mmap
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.contract.errors import InputRejected

LARGEST_DIRECTORY = 32 * 2**20  # bytes
MOST_RECORDS = 100_000
LONGEST_NAME = 512  # bytes
LONGEST_DESCRIPTOR = 24  # bytes, with its signature and in zip64

END = struct.Struct("<4s4H2LH")
END_64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR_64 = struct.Struct("<4sLQL")
CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
ABSENT_16, ABSENT_32 = 0xFFFF, 0xFFFFFFFF  # "see the zip64 record"

ROOT = re.compile(r"[^/\\\x00-\x1f]{1,200}")
EXPECTED = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/version|\.data/serialization_id|\.format_version"
    r"|\.storage_alignment|models/[A-Za-z0-9_-]{1,64}\.json"
    r"|data/(weights|constants)/[A-Za-z0-9_-]{1,64}_(weights|constants)_config\.json"
    r"|data/weights/weight_\d{1,6}|data/constants/tensor_\d{1,6}"
)
# Ordinary archives carry these; nothing here needs them, and they are never opened.
UNOPENED = re.compile(r"data/sample_inputs/[A-Za-z0-9_-]{1,64}\.pt|extra/[A-Za-z0-9_./-]{1,200}")

EXPORT_AGAIN = "export it again with torch.export.export and torch.export.save of torch 2.9 or newer"
# What else may stand in a zip file of PyTorch's: a sign of it, the error's code, what it is and what to do.
REFUSED: tuple[tuple[re.Pattern[str], str, str, str], ...] = (
    (
        re.compile(
            r"(.*/)?serialized_(exported_program\.json|state_dict\.(pt|json)|constants\.(pt|json)|example_inputs\.pt)"
        ),
        "pickle_refused",
        "this is an archive of an older torch, whose weights are pickled",
        EXPORT_AGAIN,
    ),
    (re.compile(r"data/(weights|constants)/.*\.pt"), "pickle_refused", "weights are pickled in it", EXPORT_AGAIN),
    (
        re.compile(r"data/constants/(custom|opaque)_obj_\d+"),
        "pickle_refused",
        "it is a pickled object (a custom class or an opaque constant)",
        "keep the model's constants in plain tensors and export it again",
    ),
    (
        re.compile(r"data/aotinductor/.*|.*\.(so|cubin|o|cpp)"),
        "compiled_code_refused",
        "it is machine code compiled by AOTInductor",
        "save the exported program itself with torch.export.save",
    ),
    (
        re.compile(r"executorch/.*|data/executorch/.*|.*\.pte"),
        "compiled_code_refused",
        "it is an ExecuTorch program",
        "save the exported program itself with torch.export.save",
    ),
    (
        re.compile(r"constants\.pkl|code/.*|.*\.py"),
        "code_refused",
        "this is a TorchScript archive or holds Python code",
        "export the model with torch.export.export instead of torch.jit",
    ),
    (
        re.compile(r"data\.pkl|.*\.pkl"),
        "pickle_refused",
        "this is a checkpoint of torch.save",
        "upload it as checkpoint.pt with an architecture's name, or export the model with torch.export",
    ),
)


def malformed(what: str) -> InputRejected:
    """The refusal of an archive whose bytes are not as torch writes them."""
    return InputRejected(
        f"The .pt2 archive is malformed: {what}. Save the model again with torch.export.save.", code="archive_malformed"
    )


@dataclass(frozen=True)
class Archive:
    """The contents of the records that may be read, by name without the root folder."""

    records: Mapping[str, memoryview]
    checksums: Mapping[str, int]  # CRC-32, as the directory says

    def require(self, name: str) -> memoryview:
        """The contents of `name`; `InputRejected` where there is no such record."""
        if name not in self.records:
            raise malformed(f"it has no record {name}")
        return self.records[name]

    def document(self, name: str) -> memoryview:
        """The contents of a record that is to be parsed, checked against its CRC.

        Tensors are not: the upload's own SHA-256 has vouched for their bytes, and they are better not touched.
        """
        contents = self.require(name)
        if zlib.crc32(contents) != self.checksums[name]:
            raise malformed(f"the checksum of {name} is wrong")
        return contents


@dataclass(frozen=True)
class Entry:
    """One line of the directory."""

    name: str
    size: int
    offset: int  # of the local header
    checksum: int
    stored: bool  # as it is, not compressed


def open_archive(path: Path) -> Archive:
    """The records of the archive at `path`, mapped copy-on-write: writing to one never reaches the file.

    Raises `InputRejected` for whatever is not a plain archive of torch.export.
    """
    with path.open("rb") as file:
        if path.stat().st_size < END.size:
            raise malformed("it is too short to be an archive")
        # The map lives as long as a view of it.
        contents = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    entries, directory = read_directory(contents)
    refuse_other_kinds(entries)
    root = common_root(entries)
    names = [entry.name.removeprefix(f"{root}/") for entry in entries]
    for name, entry in zip(names, entries, strict=True):
        expect(name)
        if not entry.stored:
            raise malformed(f"{name[:120]!r} is compressed, and torch compresses nothing")
    ranges = contents_in_order(contents, entries, directory)
    readable = [place for place, name in enumerate(names) if not UNOPENED.fullmatch(name)]
    return Archive(
        records={names[place]: contents[slice(*ranges[place])] for place in readable},
        checksums={names[place]: entries[place].checksum for place in readable},
    )


def refuse_other_kinds(entries: list[Entry]) -> None:
    """`InputRejected` for what is a zip file of PyTorch's, but not one of torch.export's with plain tensors."""
    names = [(entry.name, entry.name.partition("/")[2]) for entry in entries]
    for pattern, code, what, remedy in REFUSED:
        for whole, inner in names:
            if not UNOPENED.fullmatch(inner) and (pattern.fullmatch(whole) or pattern.fullmatch(inner)):
                raise InputRejected(f"The archive holds {whole[:120]!r}: {what}. Please {remedy}.", code=code)


def expect(name: str) -> None:
    """`InputRejected` unless a record of this name belongs into an archive that can be read."""
    parts = name.split("/")
    if not (EXPECTED.fullmatch(name) or UNOPENED.fullmatch(name)) or ".." in parts or "" in parts:
        raise malformed(f"a record named {name[:120]!r} does not belong in it")


def common_root(entries: list[Entry]) -> str:
    """The one folder in which all records stand."""
    root = entries[0].name.partition("/")[0]
    if any(not entry.name.startswith(f"{root}/") for entry in entries):
        raise malformed("its records do not stand in one folder")
    if not ROOT.fullmatch(root) or root in {".", ".."}:
        raise malformed("its folder has an impossible name")
    return root


def read_directory(contents: memoryview) -> tuple[list[Entry], int]:
    """All entries in order of the directory, and where it begins; its place and size are checked first."""
    end = len(contents) - END.size
    signature, disk, start_disk, here, total, size, offset, comment = END.unpack(contents[end:])
    if signature != b"PK\x05\x06" or comment:
        raise malformed("it does not end as a zip file without a comment does")
    if ABSENT_32 in {size, offset} or ABSENT_16 in {here, total} or has_locator(contents, end):
        disk, start_disk, here, total, size, offset, end = read_end_64(contents, end)
    if disk or start_disk or here != total:
        raise malformed("it spans several disks")
    if not 0 < total <= MOST_RECORDS or size > LARGEST_DIRECTORY:
        raise malformed(f"its directory has {total} records in {size} bytes, beyond what is read")
    if offset + size != end:
        raise malformed("its directory is not where its end says")
    return parse_entries(contents[offset:end], total), offset


def has_locator(contents: memoryview, end: int) -> bool:
    start = end - LOCATOR_64.size
    return start >= 0 and bytes(contents[start : start + 4]) == b"PK\x06\x07"


def read_end_64(contents: memoryview, end: int) -> tuple[int, int, int, int, int, int, int]:
    """The zip64 end, which must lie right before its locator: disks, counts, size, offset, and where it begins."""
    locator = end - LOCATOR_64.size
    start = locator - END_64.size
    if start < 0 or not has_locator(contents, end):
        raise malformed("its zip64 end is missing")
    _, disk, place, disks = LOCATOR_64.unpack(contents[locator:end])
    fields = END_64.unpack(contents[start:locator])
    signature, length, _, _, *rest = fields
    if signature != b"PK\x06\x06" or length != END_64.size - 12 or place != start or disk or disks > 1:
        raise malformed("its zip64 end is not where its locator says")
    own_disk, start_disk, here, total, size, offset = rest
    return own_disk, start_disk, here, total, size, offset, start


def parse_entries(directory: memoryview, total: int) -> list[Entry]:
    entries, position, names = [], 0, set()
    for _ in range(total):
        if position + CENTRAL.size > len(directory):
            raise malformed("its directory is shorter than its count of records")
        fields = CENTRAL.unpack(directory[position : position + CENTRAL.size])
        position += CENTRAL.size
        name_length, extra_length, comment_length = fields[10:13]
        name = decode_name(directory[position : position + name_length], fields)
        extra = directory[position + name_length : position + name_length + extra_length]
        position += name_length + extra_length + comment_length
        entries.append(parse_entry(name, fields, extra))
        names.add(name)
    if position != len(directory) or len(names) != total:
        raise malformed("its directory names a record twice, or has bytes left over")
    return entries


def decode_name(raw: memoryview, fields: tuple[bytes | int, ...]) -> str:
    signature, flags = fields[0], int(fields[3])
    if signature != b"PK\x01\x02" or not 0 < len(raw) <= LONGEST_NAME:
        raise malformed("an entry of its directory is broken")
    if flags & ~0x0808:  # only "sizes follow the contents" and "names are UTF-8"; encryption is bit 0
        raise malformed("a record is encrypted or of a newer kind")
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise malformed("a record's name is not UTF-8") from error


def parse_entry(name: str, fields: tuple[int, ...], extra: memoryview) -> Entry:
    """The entry, with sizes and offset from its zip64 field where they do not fit."""
    method, packed, size, disk, offset = fields[4], fields[8], fields[9], fields[13], fields[16]
    wide = zip64_values(extra)
    try:
        size = wide.pop(0) if size == ABSENT_32 else size
        packed = wide.pop(0) if packed == ABSENT_32 else packed
        offset = wide.pop(0) if offset == ABSENT_32 else offset
    except IndexError as error:
        raise malformed(f"the size of {name[:120]!r} is missing") from error
    if disk:
        raise malformed("it spans several disks")
    return Entry(name, size, offset, checksum=fields[7], stored=method == 0 and packed == size)


def zip64_values(extra: memoryview) -> list[int]:
    """The 64-bit numbers of an entry's extra field 1."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack("<2H", extra[position : position + 4])
        body = extra[position + 4 : position + 4 + length]
        if kind == 1:
            return list(struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8]))
        position += 4 + length
    return []


def contents_in_order(contents: memoryview, entries: list[Entry], directory: int) -> list[tuple[int, int]]:
    """Where each entry's contents begin and end; in a row they must fill the file up to the directory."""
    ranges = {}
    expected, slack = 0, 0
    for entry in sorted(entries, key=lambda entry: entry.offset):
        if not expected <= entry.offset <= expected + slack:
            raise malformed(f"{entry.name[:120]!r} overlaps another record or leaves a gap before it")
        start = contents_start(contents, entry)
        expected, slack = start + entry.size, LONGEST_DESCRIPTOR
        ranges[entry.name] = (start, expected)
    if not expected <= directory <= expected + slack:
        raise malformed("its last record reaches into the directory, or there is a gap between them")
    return [ranges[entry.name] for entry in entries]


def contents_start(contents: memoryview, entry: Entry) -> int:
    """Where the contents of an entry begin, by its local header, which must agree with the directory."""
    header_end = entry.offset + LOCAL.size
    if header_end > len(contents):
        raise malformed(f"{entry.name[:120]!r} lies beyond the end of the file")
    signature, _, flags, method, _, _, _, packed, size, name_length, extra_length = LOCAL.unpack(
        contents[entry.offset : header_end]
    )
    name = bytes(contents[header_end : header_end + name_length])
    sizes_follow = flags & 8
    if signature != b"PK\x03\x04" or method != 0 or flags & ~0x0808 or name != entry.name.encode():
        raise malformed(f"the header of {entry.name[:120]!r} contradicts the directory")
    if not sizes_follow and {packed, size} - {entry.size, ABSENT_32}:
        raise malformed(f"the header of {entry.name[:120]!r} contradicts the directory")
    return int(header_end + name_length + extra_length)
