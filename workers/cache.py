"""The cache of canonical inputs: what a job uses is its own, and the least recently used goes first.

A job does not read the cache's entry but hard links to its files, in the job's folder. An entry can
therefore go at any time without harm to whom it serves: the bytes stay until the last job that links
them has ended, and an entry whose files are linked is left alone, for its going would free nothing.
"""

import errno
import os
import secrets
import shutil
from pathlib import Path

from workers.folders import held_folder

COPY_INSTEAD = {errno.EXDEV, errno.EPERM, errno.EMLINK}  # of a link, where there can be none


class Evicted(Exception):
    """The entry went before all of it was linked; make it again."""


def touch(entry: Path) -> None:
    """Note that an entry is used now."""
    os.utime(entry)


def link(canonical: Path, target: Path) -> Path:
    """Make `target` a folder with the same files as an entry's canonical folder, and return it. Raises Evicted."""
    try:
        shutil.copytree(canonical, target, copy_function=_link)
    except (shutil.Error, FileNotFoundError) as error:
        shutil.rmtree(target, ignore_errors=True)
        if canonical.exists():
            raise
        raise Evicted(str(canonical)) from error
    return target


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in COPY_INSTEAD:
            raise
        shutil.copyfile(source, target)


def evict(cache: Path, max_bytes: int, keep: Path) -> list[str]:
    """Remove entries that no job uses, the least recently used first, until `max_bytes` are left; return their names.

    `keep` stays: it was entered in this moment, and nobody has linked it yet.
    """
    entries = sorted((facts.st_mtime, path) for path in cache.iterdir() if (facts := _entry(path)) is not None)
    sizes = {path: _size(path) for _, path in entries}
    held, gone = sum(sizes.values()), []
    for _, entry in entries:
        if held <= max_bytes:
            break
        if entry != keep and not _is_used(entry):
            _remove(entry, cache / "incoming")
            held -= sizes[entry]
            gone.append(entry.name)
    return gone


def _entry(path: Path) -> os.stat_result | None:
    """Return when an entry was used last; None for what is no entry, or gone."""
    try:
        return path.stat() if (path / "facts.json").exists() else None
    except FileNotFoundError:
        return None


def _files(entry: Path) -> list[os.stat_result]:
    found = []
    for folder, _, names in os.walk(entry):
        for name in names:
            try:
                found.append(os.lstat(Path(folder, name)))
            except FileNotFoundError:  # another worker evicts it too
                continue
    return found


def _size(entry: Path) -> int:
    return sum(found.st_blocks * 512 for found in _files(entry))


def _is_used(entry: Path) -> bool:
    return any(found.st_nlink > 1 for found in _files(entry))


def _remove(entry: Path, incoming: Path) -> None:
    """Take an entry away in one step, so that nobody finds half of it, and then its bytes."""
    with held_folder(incoming / f"evicted-{secrets.token_hex(8)}") as folder:
        try:
            entry.rename(folder / "entry")
        except FileNotFoundError:  # another worker was quicker
            return
