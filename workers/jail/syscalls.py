"""The system calls that reading files and computing with tensors needs: all others are refused.

A number for x86_64 and one for aarch64 (None where it does not exist), from <asm/unistd_64.h> and
<asm-generic/unistd.h>. Whatever makes a process, runs a program, opens a socket, looks into another
process, changes rights, owners, links or mounts, or is rarely used and often broken (io_uring, bpf,
userfaultfd, keyctl, perf_event_open ...) is absent, and so is every call of kernels to come.

Some calls are allowed with certain arguments only. Filters see numbers, never what a pointer leads
to: `clone3`, whose flags lie in memory, is answered with "not implemented", and libc takes `clone`.
"""

import fcntl
import os
import termios
from dataclasses import dataclass

ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # open descriptors
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "preadv": (295, 69),
    "pwritev": (296, 70),
    "lseek": (8, 62),
    "close": (3, 57),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "flock": (73, 32),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "eventfd2": (290, 19),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "sendfile": (40, 71),
    "copy_file_range": (326, 285),
    # files: which ones is Landlock's affair
    "open": (2, None),
    "openat": (257, 56),
    "creat": (85, None),
    "stat": (4, None),
    "lstat": (6, None),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "umask": (95, 166),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "fallocate": (285, 47),
    "ftruncate": (77, 46),
    "truncate": (76, 45),
    "fadvise64": (221, 223),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    # memory
    "brk": (12, 214),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "msync": (26, 227),
    "get_mempolicy": (239, 236),
    # threads
    "futex": (202, 98),
    "futex_waitv": (449, 449),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120),
    "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
    "gettid": (186, 178),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "wait4": (61, 260),
    # its own signals
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    # who and where am I
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getpgrp": (111, None),
    "getpgid": (121, 155),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getgroups": (115, 158),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "times": (100, 153),
    "getcpu": (309, 168),
    # time and chance
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "getrandom": (318, 278),
}
NOT_IMPLEMENTED: dict[str, tuple[int | None, int | None]] = {"clone3": (435, 435)}


@dataclass(frozen=True)
class Argument:
    """One 32-bit word of an argument must, once masked, be one of some values."""

    index: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    upper: bool = False  # the upper half of the 64 bits


@dataclass(frozen=True)
class Conditional:
    """A call that is allowed when all of its conditions hold."""

    numbers: tuple[int | None, int | None]
    conditions: tuple[Argument, ...]


CLONE_THREAD = 0x00010000  # <linux/sched.h>
CLONE_NEW_NAMESPACES = 0x7E020080  # cgroup, uts, ipc, user, pid and network; mounts; time
PR_SET_NAME, PR_GET_NAME = 15, 16
FCNTL_COMMANDS = (
    *(fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL),
    *(fcntl.F_GETLK, fcntl.F_SETLK, fcntl.F_SETLKW),
)
IOCTL_REQUESTS = (termios.TCGETS, termios.TIOCGWINSZ, termios.FIONREAD, termios.FIONBIO, termios.FIOCLEX)


def conditional() -> dict[str, Conditional]:
    """Return the calls that depend on their arguments, for the process that asks: it may signal itself alone.

    `fcntl` could else choose a process to be sent a signal, and `ioctl` type into a terminal.
    """
    me = os.getpid()
    return {
        "clone": Conditional((56, 220), (Argument(0, (CLONE_THREAD,), CLONE_THREAD | CLONE_NEW_NAMESPACES),)),
        "kill": Conditional((62, 129), (Argument(0, (me, -me & 0xFFFFFFFF)),)),
        "tgkill": Conditional((234, 131), (Argument(0, (me,)),)),
        "prctl": Conditional((157, 167), (Argument(0, (PR_SET_NAME, PR_GET_NAME)),)),
        "prlimit64": Conditional(  # asking after one's own limits: no process named, no new limit
            (302, 261), (Argument(0, (0,)), Argument(2, (0,)), Argument(2, (0,), upper=True))
        ),
        "fcntl": Conditional((72, 25), (Argument(1, FCNTL_COMMANDS),)),
        "ioctl": Conditional((16, 29), (Argument(1, IOCTL_REQUESTS),)),
    }
