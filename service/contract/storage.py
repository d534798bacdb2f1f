"""Content-addressed files: what is stored is named by its SHA-256, and is whole or absent.

A file lands under a temporary name, is flushed to the disk, and is renamed; the folder is flushed
after it. Two writers of the same content write the same bytes, so neither can harm the other.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from service.contract.errors import NotFound, Unavailable

CHUNK_BYTES = 1 << 18  # a download holds a few of them, and hundreds may go out at once
SHA256 = re.compile(r"[0-9a-f]{64}")
Chunks = Generator[bytes, None, None]


@dataclass(frozen=True)
class StoredFile:
    """What identifies a stored file."""

    sha256: str
    size: int


class Storage(Protocol):
    """Where files lie."""

    def adopt(self, path: Path, sha256: str) -> None:
        """Take the complete local file at `path`, whose digest the caller computed; `path` is gone after."""

    def put(self, path: Path) -> StoredFile:
        """Store a copy of the local file at `path`."""

    def size(self, sha256: str) -> int:
        """Return the size in bytes. Raises NotFound."""

    def read(self, sha256: str, start: int = 0, stop: int | None = None) -> Chunks:
        """Yield the bytes from `start` up to `stop` in chunks; who stops early closes it. Raises NotFound at once."""

    def fetch(self, sha256: str, destination: Path) -> None:
        """Place the file at the local path `destination`; it is read-only there."""

    def delete(self, sha256: str) -> None:
        """Remove the file if it is there."""

    def check(self) -> int:
        """Return the free space in bytes. Raises Unavailable."""


def hash_file(path: Path) -> StoredFile:
    """Return digest and size of a local file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return StoredFile(digest, path.stat().st_size)


def flush(path: Path) -> None:
    """Have the disk hold a file, or a folder's entries, before this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LocalStorage:
    """Files in a folder of this machine: `ab/abcdef…`, and `incoming/` for what is not whole yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming = root / "incoming"
        self.incoming.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Return where the file lies, or would lie."""
        if not SHA256.fullmatch(sha256):
            raise ValueError(f"not a SHA-256: {sha256!r}")
        return self.root / sha256[:2] / sha256

    def adopt(self, path: Path, sha256: str) -> None:
        target = self.path(sha256)
        try:
            flush(path)
            path.chmod(0o444)
            target.parent.mkdir(exist_ok=True)
            path.replace(target)
            flush(target.parent)
        except OSError as error:
            raise _unavailable(error) from error

    def put(self, path: Path) -> StoredFile:
        temporary = self.incoming / f"put-{secrets.token_hex(8)}"
        try:
            shutil.copyfile(path, temporary)
            stored = hash_file(temporary)
            self.adopt(temporary, stored.sha256)
        except OSError as error:
            raise _unavailable(error) from error
        finally:
            temporary.unlink(missing_ok=True)
        return stored

    def size(self, sha256: str) -> int:
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            raise NotFound(f"the storage holds no file {sha256}") from None

    def read(self, sha256: str, start: int = 0, stop: int | None = None) -> Chunks:
        self.size(sha256)
        return self._chunks(sha256, start, stop)

    def _chunks(self, sha256: str, start: int, stop: int | None) -> Chunks:
        with self.path(sha256).open("rb") as file:
            file.seek(start)
            left = (self.size(sha256) if stop is None else stop) - start
            while left > 0 and (chunk := file.read(min(CHUNK_BYTES, left))):
                left -= len(chunk)
                yield chunk

    def fetch(self, sha256: str, destination: Path) -> None:
        self.size(sha256)
        destination.unlink(missing_ok=True)
        try:
            destination.hardlink_to(self.path(sha256))
        except OSError as error:
            if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK}:
                raise _unavailable(error) from error
            shutil.copyfile(self.path(sha256), destination)

    def delete(self, sha256: str) -> None:
        with suppress(FileNotFoundError):
            self.path(sha256).unlink()

    def check(self) -> int:
        probe = self.incoming / f"probe-{secrets.token_hex(8)}"
        try:
            probe.write_bytes(b"probe")
            probe.unlink()
            return shutil.disk_usage(self.root).free
        except OSError as error:
            raise _unavailable(error) from error


def _unavailable(error: OSError) -> Unavailable:
    return Unavailable(f"the storage cannot be written: {error.strerror or type(error).__name__}")


def open_storage(url: str) -> LocalStorage:
    """Return the storage that a URL names: `file:///folder`."""
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in {"", "localhost"}:
        raise ValueError(f"STILLHOUSE_STORAGE_URL must be file:///folder; got {parts.scheme}://…")
    return LocalStorage(Path(unquote(parts.path)))
