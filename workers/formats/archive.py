"""Zip archives from strangers: everything that can be judged without unpacking is judged first.

A zip's table of contents stands at its end and says where each member lies, how long it is and how
long it will become. A hostile one lies: members that overlap (a few megabytes become petabytes),
names that climb out of the folder, hundreds of thousands of entries, encrypted or linked members.
Here the table's own size is read before the table, the table before any member, and a member never
yields more bytes than the table declares.
"""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.contract.errors import InputRejected

LOCAL_HEADER_BYTES = 30
ENTRY_BYTES = 46  # the least that one entry of the table takes
ENTRY_LENGTHS, ENTRY_LENGTHS_AT = struct.Struct("<3H"), 28  # of its name, extra field and comment
LONGEST_NAME = 1024
LONGEST_COMMENT = 2**16
END_BYTES, LOCATOR_BYTES, END64_BYTES = 22, 20, 76  # the last with its locator
END, END64_LOCATOR, END64 = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
WHOLE_AGAIN = "Make the archive again and upload it whole."


def is_zip(path: Path) -> bool:
    """Whether a file begins as zip archives do."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


@contextmanager
def opened(path: Path, *, max_entries: int) -> Iterator[zipfile.ZipFile]:
    """An archive whose table of contents was found sound; what breaks while it is read becomes `InputRejected`.

    Raises `InputRejected` with code "truncated", "too_large" (more than `max_entries`), or "archive_refused".
    """
    check_table_size(path, max_entries)
    try:
        with table_of(path) as archive:
            check_members(path.name, archive, max_entries)
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error) as error:
        raise InputRejected(
            f"{path.name} is damaged or cut short ({error or 'it ends too early'}). {WHOLE_AGAIN}", code="truncated"
        ) from error
    except (NotImplementedError, UnicodeDecodeError) as error:
        raise InputRejected(
            f"{path.name} uses a feature of zip that is not taken ({error}); store or deflate its members.",
            code="archive_refused",
        ) from error


def table_of(path: Path) -> zipfile.ZipFile:
    """The archive, its table read. Offsets that lead nowhere are damage like any other."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, ValueError, OverflowError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise zipfile.BadZipFile(str(error)[:200]) from error


def check_table_size(path: Path, max_entries: int) -> None:
    """Refuse an archive without an end record, or with a table of contents that is too long to read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - LONGEST_COMMENT - END_BYTES - END64_BYTES))
        tail = file.read()
    at = tail.rfind(END)
    if at < 0 or len(tail) - at < END_BYTES:
        raise InputRejected(
            f"{path.name} has no zip end record: it is not a zip archive, or was cut short at {size} bytes. "
            f"{WHOLE_AGAIN}",
            code="truncated",
        )
    entries, table_bytes = struct.unpack_from("<HI", tail, at + 10)
    end = size - len(tail) + at  # of the table
    # Where zipfile looks for the records of large archives: right before the end record.
    large = at - END64_BYTES
    if large >= 0 and tail.startswith(END64, large) and tail.startswith(END64_LOCATOR, at - LOCATOR_BYTES):
        entries, table_bytes = struct.unpack_from("<QQ", tail, large + 32)
        end -= END64_BYTES
    if entries > max_entries or table_bytes > max_entries * (ENTRY_BYTES + 256):
        raise InputRejected(
            f"{path.name} declares {entries} members in a table of {table_bytes} bytes; "
            f"at most {max_entries} members are taken.",
            code="too_large",
        )
    check_count(path, entries, table_bytes, end)


def check_count(path: Path, entries: int, table_bytes: int, end: int) -> None:
    """Refuse a table that ends at `end` and lists more than it declares: each entry becomes an object."""
    if table_bytes > end:
        raise InputRejected(
            f"{path.name} is cut short: its table is longer than the file. {WHOLE_AGAIN}", code="truncated"
        )
    with path.open("rb") as file:
        file.seek(end - table_bytes)
        table = file.read(table_bytes)
    position = count = 0
    while position + ENTRY_BYTES <= len(table) and count <= entries:
        position += ENTRY_BYTES + sum(ENTRY_LENGTHS.unpack_from(table, position + ENTRY_LENGTHS_AT))
        count += 1
    if count > entries:
        raise InputRejected(
            f"{path.name} declares {entries} members and lists more. {WHOLE_AGAIN}", code="archive_refused"
        )


def check_members(file_name: str, archive: zipfile.ZipFile, max_entries: int) -> None:
    """Refuse members that are too many, repeated, overlapping, or of a kind that is not taken."""
    members = archive.infolist()
    if len(members) > max_entries:
        raise InputRejected(
            f"{file_name} has {len(members)} members; at most {max_entries} are taken.", code="too_large"
        )
    seen: set[str] = set()
    if any(member.header_offset < 0 for member in members):
        raise InputRejected(f"{file_name}: a member lies before the file. {WHOLE_AGAIN}", code="archive_refused")
    for member in members:
        if fault := member_fault(member):
            raise InputRejected(f"{file_name}: member {member.orig_filename[:200]!r} {fault}.", code="archive_refused")
        if member.filename in seen:
            raise InputRejected(
                f"{file_name}: member {member.filename!r} occurs twice; write it once.", code="archive_refused"
            )
        seen.add(member.filename)
    check_overlaps(file_name, members, archive.start_dir)


def member_fault(member: zipfile.ZipInfo) -> str | None:
    """What is wrong with one entry of the table, if anything."""
    name = member.orig_filename
    parts = name.removesuffix("/").split("/")
    if len(name) > LONGEST_NAME or any(ord(c) < 32 or c in '\\:\x7f"<>|' for c in name):
        return "has a name with characters that are not taken, or too long a one"
    if any(part in {"", ".", ".."} for part in parts):
        return "has a path that leaves the archive; names must be relative, without '..'"
    if member.flag_bits & 0x1:
        return "is encrypted; archives must be readable without a password"
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        return "is compressed by a method that is not taken; store or deflate it"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a symbolic link; put the file itself into the archive"
    return None


def check_overlaps(file_name: str, members: list[zipfile.ZipInfo], end: int) -> None:
    """Refuse members that share bytes: each must end where the next begins, or before."""
    ordered = sorted(members, key=lambda member: member.header_offset)
    ends = [*(member.header_offset for member in ordered), end][1:]
    for member, next_start in zip(ordered, ends, strict=True):
        name_bytes = len(member.orig_filename.encode("utf-8" if member.flag_bits & 0x800 else "cp437"))
        if member.header_offset + LOCAL_HEADER_BYTES + name_bytes + member.compress_size > next_start:
            raise InputRejected(
                f"{file_name}: member {member.filename!r} overlaps what follows it; such archives are refused.",
                code="archive_refused",
            )
