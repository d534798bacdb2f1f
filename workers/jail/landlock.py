"""Landlock: a process gives up the right to open files, except below folders that it names.

The kernel checks it at `open`, `unlink`, `rename` and the like, by where a file lies and not by what
path or link led there; it cannot be lifted again, and threads started later inherit it. It needs no
privilege but "no new privileges". What it can restrict grew with its ABI version:

    1 files   2 moves between folders   3 truncation   4 TCP   5 devices' ioctl   6 signals, abstract sockets

Not covered by any version: `stat`, `access`, `chmod`, `chown`, descriptors that are open already. The
system-call filter (`workers.jail.seccomp`) takes away those that change anything.

Source: https://docs.kernel.org/userspace-api/landlock.html, <linux/landlock.h>.
"""

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterable
from enum import IntFlag
from pathlib import Path

from workers.jail.kernel import syscall

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
RULESET_VERSION = 1  # flag: answer the ABI's version
RULE_PATH_BENEATH = 1
NOT_OFFERED = {
    errno.ENOSYS: "this kernel was built without it",
    errno.EOPNOTSUPP: "it was switched off when the kernel started",
    errno.EPERM: "the container's system-call filter forbids it",
}


class Files(IntFlag):
    """What may be done to files: `LANDLOCK_ACCESS_FS_*`."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


READING = Files.READ_FILE | Files.READ_DIR
CHANGING = (
    Files.WRITE_FILE
    | Files.TRUNCATE
    | Files.MAKE_REG
    | Files.MAKE_DIR
    | Files.REMOVE_FILE
    | Files.REMOVE_DIR
    | Files.REFER
)
OF_ONE_FILE = Files.EXECUTE | Files.WRITE_FILE | Files.READ_FILE | Files.TRUNCATE | Files.IOCTL_DEV
NUM_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # by ABI; 16 from 5 on
TCP = 0b11  # binding and connecting
SCOPES = 0b11  # abstract Unix sockets and signals


class _Ruleset(ctypes.Structure):
    """`landlock_ruleset_attr`: what is denied unless a rule allows it."""

    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    """`landlock_path_beneath_attr`: what is allowed below an open folder."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def offer() -> tuple[int, str]:
    """Return the ABI's version and "", or 0 and why there is none."""
    try:
        return syscall(CREATE_RULESET, None, 0, RULESET_VERSION), ""
    except OSError as error:
        return 0, NOT_OFFERED.get(error.errno or 0, str(error))


def restrict(abi: int, readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """Leave the calling thread, and those it starts, only these folders and files, and no TCP.

    Below `writable` regular files and folders may be read, made, changed and removed. Symbolic links,
    devices and sockets may be made nowhere, and nothing may be executed. Paths that do not exist are
    passed over. Raises OSError.
    """
    handled = Files((1 << NUM_FILE_RIGHTS.get(abi, 16)) - 1)
    attributes = _Ruleset(handled, TCP if abi >= 4 else 0, SCOPES if abi >= 6 else 0)
    ruleset = syscall(CREATE_RULESET, attributes, ctypes.sizeof(attributes), 0)
    try:
        for path in readable:
            _allow(ruleset, path, READING & handled)
        for path in writable:
            _allow(ruleset, path, (READING | CHANGING) & handled)
        syscall(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: Files) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(folder).st_mode):
                rights &= OF_ONE_FILE
            syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, _PathBeneath(rights, folder), 0)
        finally:
            os.close(folder)
