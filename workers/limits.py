"""What the kernel is asked to enforce on a child process, and what it tells of a process's memory.

Limits are set by the child on itself, before it touches anything untrusted; none can be raised again.
"""

import ctypes
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
PR_SET_NO_NEW_PRIVS = 38
SPARE_TASKS = 64  # threads that libraries start for themselves
CPU_GRACE_SECONDS = 5
GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """What one reading may take: bytes beyond what the process holds already, CPU seconds, bytes of one file."""

    memory_bytes: int
    cpu_seconds: int
    file_bytes: int


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that made it ends."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def forbid_new_privileges() -> None:
    """No program that this process starts may gain rights: set-user-ID bits count for nothing."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def forbid_core_dumps() -> None:
    """A dump would hold users' data, and may be as large as the process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def confine(limits: Limits) -> None:
    """Bound this process's memory, CPU time, files and number of tasks."""
    forbid_new_privileges()
    forbid_core_dumps()
    held = _status_bytes(os.getpid(), "VmSize") or 0
    cpu = limits.cpu_seconds
    _lower(resource.RLIMIT_AS, held + limits.memory_bytes)
    _lower(resource.RLIMIT_CPU, cpu, cpu + CPU_GRACE_SECONDS)  # at the first SIGXCPU, at the second SIGKILL
    _lower(resource.RLIMIT_FSIZE, limits.file_bytes)
    _lower(resource.RLIMIT_NPROC, _tasks_of_user(os.getuid()) + SPARE_TASKS)


def _lower(which: int, soft: int, hard: int | None = None) -> None:
    """Set a limit, or leave what is lower already."""
    _, ceiling = resource.getrlimit(which)
    hard = soft if hard is None else hard
    hard = hard if ceiling == resource.RLIM_INFINITY else min(hard, ceiling)
    resource.setrlimit(which, (min(soft, hard), hard))


def _tasks_of_user(user: int) -> int:
    """Return how many threads a user runs: the kernel counts RLIMIT_NPROC over all of them."""
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == user:
                count += len(list((folder / "task").iterdir()))
        except OSError:  # it has ended meanwhile
            continue
    return count


def _status_bytes(pid: int, field: str) -> int | None:
    """Return a size that /proc tells of a process; None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    line = next((line for line in text.splitlines() if line.startswith(f"{field}:")), None)
    return None if line is None else int(line.split()[1]) * 1024


def peak_memory(pid: int) -> int | None:
    """Return the most memory, in bytes, that a living process has held at once; None when it is gone."""
    return _status_bytes(pid, "VmHWM")


def memory_limit() -> int:
    """Return how much memory, in bytes, the processes of this machine or container may hold."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = min(limit, int(Path(path).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return limit


def kernel_memory_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since it started."""
    try:
        text = Path("/proc/vmstat").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)


def in_gib(num_bytes: int) -> str:
    """Return a size for people."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / (1 << 20):.0f} MiB"
