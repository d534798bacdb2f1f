"""Seccomp: a small program that the kernel runs before each system call, and that refuses all but some.

The program is classic BPF: it loads 32-bit words of the call's description (`struct seccomp_data`: the
number, the architecture, six arguments of 64 bits), compares and jumps forward, and returns a verdict.
It cannot be taken off again, it holds for every thread, and it needs no privilege but "no new
privileges". A refused call fails with EPERM; nobody is killed, for honest libraries try things.

Source: https://docs.kernel.org/userspace-api/seccomp_filter.html, <linux/filter.h>, <linux/seccomp.h>.
"""

import ctypes
import errno
import struct
from collections.abc import Iterator, Mapping
from typing import Final

from workers.jail.kernel import syscall
from workers.jail.syscalls import ALLOWED, NOT_IMPLEMENTED, Argument, Conditional, conditional

SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
SET_MODE_FILTER, GET_ACTION_AVAIL = 1, 2
TSYNC = 1  # flag: all threads
AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
COLUMN: Final = {"x86_64": 0, "aarch64": 1}

LOAD, AND, JUMP_IF_EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06  # BPF_LD|W|ABS, ALU|AND|K, JMP|JEQ|K, RET|K
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in seccomp_data, bytes
ALLOW = 0x7FFF0000
ERRNO = 0x00050000
REFUSE = ERRNO | errno.EPERM
UNKNOWN = ERRNO | errno.ENOSYS

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


class _Program(ctypes.Structure):
    """`sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def offered(architecture: str | None) -> bool:
    """Whether the kernel (and the container around) can filter system calls, and we know its numbers."""
    if architecture is None:
        return False
    verdict = ctypes.create_string_buffer(struct.pack("=I", ERRNO), 4)
    try:
        return syscall(SECCOMP[architecture], GET_ACTION_AVAIL, 0, verdict) == 0
    except OSError:
        return False


def restrict(architecture: str) -> None:
    """Filter the system calls of all threads of this process from now on. Raises OSError."""
    code = assemble(program(architecture, conditional()))
    attributes = _Program(len(code) // 8, code)
    syscall(SECCOMP[architecture], SET_MODE_FILTER, TSYNC, attributes)


def assemble(instructions: list[Instruction]) -> bytes:
    """Return the program as an array of `sock_filter`."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def program(architecture: str, conditionals: Mapping[str, Conditional]) -> list[Instruction]:
    """Return the filter: what is not listed is refused.

    Calls of another architecture (32-bit ones on x86_64, whose numbers mean other things) are
    refused; those of x32 carry bit 30 in their number, and so equal none that is listed.
    """
    column = COLUMN[architecture]
    instructions: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        *_unless_equal(AUDIT_ARCH[architecture], REFUSE),
        (LOAD, 0, 0, NUMBER),
    ]
    for numbers in ALLOWED.values():
        instructions += _when(numbers[column], [(RETURN, 0, 0, ALLOW)])
    for numbers in NOT_IMPLEMENTED.values():
        instructions += _when(numbers[column], [(RETURN, 0, 0, UNKNOWN)])
    for call in conditionals.values():
        instructions += _when(call.numbers[column], list(_judgement(call)))
    return [*instructions, (RETURN, 0, 0, REFUSE)]


def _unless_equal(value: int, verdict: int) -> list[Instruction]:
    return [(JUMP_IF_EQUAL, 1, 0, value), (RETURN, 0, 0, verdict)]


def _when(number: int | None, block: list[Instruction]) -> list[Instruction]:
    """Run a block, which ends in a verdict, for one call's number; else jump over it."""
    return [] if number is None else [(JUMP_IF_EQUAL, 0, len(block), number), *block]


def _judgement(call: Conditional) -> Iterator[Instruction]:
    for condition in call.conditions:
        yield from _require(condition)
    yield (RETURN, 0, 0, ALLOW)


def _require(condition: Argument) -> Iterator[Instruction]:
    """Refuse unless the word is one of the values; else go on behind the refusal."""
    yield (LOAD, 0, 0, ARGUMENTS + 8 * condition.index + 4 * condition.upper)  # little-endian
    yield (AND, 0, 0, condition.mask)
    for left, value in zip(range(len(condition.values), 0, -1), condition.values, strict=True):
        yield (JUMP_IF_EQUAL, left, 0, value)
    yield (RETURN, 0, 0, REFUSE)
