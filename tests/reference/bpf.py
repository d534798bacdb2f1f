"""Classic BPF as a seccomp filter uses it, one instruction after the other (<linux/filter.h>)."""

import struct
from collections.abc import Sequence

LD_W_ABS, AND_K, JEQ_K, RET_K = 0x20, 0x54, 0x15, 0x06


def verdict(code: bytes, number: int, architecture: int, arguments: Sequence[int] = ()) -> int:
    """What a program says of a call: `struct seccomp_data` is number, architecture, address, six arguments."""
    words = [*arguments, *(6 - len(arguments)) * [0]]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *(word % 2**64 for word in words))
    program = list(struct.iter_unpack("<HBBI", code))
    accumulator = position = 0
    while True:
        operation, if_true, if_false, constant = program[position]
        position += 1
        if operation == LD_W_ABS:
            (accumulator,) = struct.unpack_from("<I", data, constant)
        elif operation == AND_K:
            accumulator &= constant
        elif operation == JEQ_K:
            position += if_true if accumulator == constant else if_false
        elif operation == RET_K:
            return int(constant)
        else:
            raise ValueError(f"no such operation: {operation:#x}")
