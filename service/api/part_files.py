"""The file under an upload while it grows: one writer at a time, hashed block by block.

The lock is the operating system's, on the file itself: it holds among processes, and a crash frees
it. The running hash is kept in memory between requests; when it is lost (a restart), the bytes that
are there are read once more.
"""

import fcntl
import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from service.contract.errors import Conflict, Unavailable

BLOCK_BYTES = 1 << 20
MAX_HASHERS = 10_000


class Hasher(Protocol):
    """What hashlib's objects do."""

    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...
    def copy(self) -> "Hasher": ...


class BeingWritten(Conflict):
    """Another request holds the upload."""

    code, title, retryable = "upload_being_written", "Another request is writing the upload", True


class Part:
    """An open and locked part file; `offset` bytes of it count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.hasher: Hasher = hashlib.sha256()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise BeingWritten(
                "another request is writing this upload; ask for its offset when that one has ended"
            ) from None

    @property
    def size(self) -> int:
        """How many bytes the file has."""
        return os.fstat(self._file).st_size

    def restore(self, offset: int, hasher: Hasher | None) -> None:
        """Continue at `offset`; without a hasher that stands there, hash what the file holds."""
        if hasher is None:
            hasher = hashlib.sha256()
            for block in self._blocks(offset):
                hasher.update(block)
        self.rewind(offset, hasher)

    def rewind(self, offset: int, hasher: Hasher) -> None:
        """Forget the bytes past `offset`; `hasher` is how it stood there."""
        os.ftruncate(self._file, offset)
        os.lseek(self._file, offset, os.SEEK_SET)
        self.offset, self.hasher = offset, hasher

    def _blocks(self, stop: int) -> Iterator[bytes]:
        os.lseek(self._file, 0, os.SEEK_SET)
        left = stop
        while left > 0 and (block := os.read(self._file, min(BLOCK_BYTES, left))):
            left -= len(block)
            yield block

    def append(self, block: bytes) -> None:
        """Write and hash a block. Raises Unavailable when the disk takes no more; then nothing of it counts."""
        view = memoryview(block)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            raise Unavailable(f"the upload cannot be written: {error.strerror}; it can go on later") from error
        self.hasher.update(block)
        self.offset += len(block)

    def sync(self) -> None:
        """Have the disk hold what counts. Raises Unavailable."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise Unavailable(f"the upload cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Release the lock; bytes that do not count go."""
        os.close(self._file)


class PartFiles:
    """The folder of part files, and the hashes in progress."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._hashers: OrderedDict[str, tuple[int, Hasher]] = OrderedDict()

    def path(self, upload_id: str) -> Path:
        """Return where an upload grows."""
        return self.folder / f"{upload_id}.part"

    def size(self, upload_id: str) -> int:
        """How many bytes lie there; 0 when the file is lost."""
        try:
            return self.path(upload_id).stat().st_size
        except FileNotFoundError:
            return 0

    def open(self, upload_id: str) -> Part:
        """Become the only writer. Raises BeingWritten; nothing is changed until `restore`."""
        return Part(self.path(upload_id))

    def restore(self, upload_id: str, part: Part, recorded: int) -> None:
        """Go on at the recorded offset, or earlier when the disk lost bytes."""
        offset = min(recorded, part.size)
        at, hasher = self._hashers.pop(upload_id, (-1, None))
        part.restore(offset, hasher if at == offset else None)

    def keep(self, upload_id: str, part: Part) -> None:
        """Remember the hash for the next request."""
        self._hashers[upload_id] = (part.offset, part.hasher)
        while len(self._hashers) > MAX_HASHERS:
            self._hashers.popitem(last=False)

    def discard(self, upload_id: str) -> None:
        """Remove what is left of an upload; the caller holds its lock."""
        self._hashers.pop(upload_id, None)
        self.path(upload_id).unlink(missing_ok=True)
