"""The kernel's calls that Python has no name for: made through libc, with errno as an exception.

Numbers below 424 differ between architectures (`workers.jail.syscalls`); newer ones are the same on all.
"""

import ctypes
import os
import platform
import sys

PR_SET_DUMPABLE = 4  # <linux/prctl.h>
PR_SET_NO_NEW_PRIVS = 38
CAPABILITY_VERSION_3 = 0x20080522  # <linux/capability.h>
CAPSET = {"x86_64": 126, "aarch64": 91}

_libc = ctypes.CDLL(None, use_errno=True)


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilitySets(ctypes.Structure):
    """Two of `__user_cap_data_struct`: 64 capabilities as two times 32 bits of each of three sets."""

    _fields_ = (("words", ctypes.c_uint32 * 6),)


def architecture() -> str | None:
    """Return "x86_64" or "aarch64"; None on others, for which `workers.jail` knows no numbers."""
    machine = {"arm64": "aarch64"}.get(platform.machine(), platform.machine())
    known = sys.platform == "linux" and sys.byteorder == "little" and sys.maxsize > 2**32
    return machine if known and machine in CAPSET else None


def syscall(number: int, *arguments: int | ctypes.Array[ctypes.c_char] | ctypes.Structure | None) -> int:
    """Make a system call; structures and buffers are passed by address. Raises OSError."""
    words = [
        ctypes.c_long(argument or 0) if isinstance(argument, int | None) else ctypes.byref(argument)
        for argument in arguments
    ]
    result = int(_syscall(ctypes.c_long(number), *words))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process. Raises OSError."""
    if _libc.prctl(option, ctypes.c_ulong(value), *3 * [ctypes.c_ulong(0)]) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def forbid_inspection() -> None:
    """No process of the same user may read this one's memory, or trace it; and there will be no core dump."""
    prctl(PR_SET_DUMPABLE, 0)


def drop_capabilities() -> None:
    """Give up what root may do more than others; for a user without capabilities this changes nothing."""
    name = architecture()
    if name is not None:
        syscall(CAPSET[name], _CapabilityHeader(CAPABILITY_VERSION_3, 0), _CapabilitySets())
