"""Folders that live as long as somebody holds them.

The holder keeps a lock (flock) on the folder itself. The kernel frees it when the holder dies,
however it dies; so a folder whose lock is free is nobody's, and the sweep may remove it.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

YOUNG_SECONDS = 60.0  # a folder may exist for a moment before it is locked


@contextmanager
def held_folder(path: Path) -> Iterator[Path]:
    """Make a folder, hold it, and remove it with all that is in it."""
    path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def remove_abandoned(parent: Path, *, older_than: float = YOUNG_SECONDS) -> list[str]:
    """Remove the folders in `parent` that nobody holds; return their names."""
    removed = []
    for path in sorted(parent.iterdir()) if parent.is_dir() else []:
        if _is_abandoned(path, older_than):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path.name)
    return removed


def _is_abandoned(path: Path, older_than: float) -> bool:
    try:
        if time.time() - path.stat().st_mtime < older_than:
            return False
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # gone already, or no folder
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def locked(path: Path, patience: float, check: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold the lock file `path`, or go on without it after `patience` seconds; yields whether it is held.

    `check` is called while waiting, and may raise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    give_up_at = time.monotonic() + patience
    try:
        held = _try_lock(descriptor)
        while not held and time.monotonic() < give_up_at:
            check()
            time.sleep(0.05)
            held = _try_lock(descriptor)
        yield held
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
