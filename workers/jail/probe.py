"""What the jail refuses on this machine: found out by a child that enters one and tries to get out."""

import os
import resource
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from structlog import get_logger

from workers import limits
from workers.child import Child
from workers.jail import kernel, landlock, seccomp
from workers.jail.jail import Cell
from workers.lifeline import Lifeline
from workers.pipe import Read

Facts = dict[str, str | bool]
LIMITS = limits.Limits(memory_bytes=1 << 30, cpu_seconds=10, file_bytes=1 << 20)
PROBE_SECONDS = 30.0
MISSING = "not offered"
log = get_logger(__name__)


def in_force() -> Facts:
    """Return what confines the readers on this machine, and what a throw-away child was refused.

    `landlock` and `seccomp` say what is in force, or why it is not. `refuses_...` is true when the
    child tried and failed. A child that says nothing confirms nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        outside = Path(folder, "outside")
        outside.write_text("not a program")
        outside.chmod(0o700)
        (inside := Path(folder, "inside")).mkdir()
        child = Child("workers.jail.probe:try_to_get_out", str(outside), cell=Cell((), (), inside, LIMITS))
        try:
            word = child.receive(PROBE_SECONDS)
        finally:
            child.end()
    found = word.facts if isinstance(word, Read) else {}
    return {**_layers(), **{name: bool(found.get(name)) for name in (*HELD, *ATTEMPTS)}}


def _layers() -> Facts:
    architecture = kernel.architecture()
    abi, why_not = landlock.offer() if architecture else (0, "unknown architecture")
    return {
        "landlock": f"ABI {abi}" if abi else f"{MISSING}: {why_not}",
        "seccomp": f"allow-list, {architecture}" if seccomp.offered(architecture) else MISSING,
    }


def announce(facts: Facts) -> None:
    """Log what is in force; what is missing is a warning."""
    missing = [name for name, value in facts.items() if value is False or str(value).startswith(MISSING)]
    if missing:
        log.warning("the readers' jail has gaps", missing=missing, **facts)
    else:
        log.info("the readers' jail is closed", **facts)


# In the child ------------------------------------------------------------------------------------


def try_to_get_out(outside: str, lifeline: Lifeline) -> None:
    """Tell what the kernel says of this process, try each way out, and tell which were refused."""
    held = {name: holds() for name, holds in HELD.items()}
    refused = {name: _refused(attempt, outside) for name, attempt in ATTEMPTS.items()}
    lifeline.channel.send(Read(facts=held | refused))


def _status(field: str) -> int:
    """Return a hexadecimal field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith(f"{field}:"))


HELD: dict[str, Callable[[], bool]] = {
    "limits": lambda: resource.RLIM_INFINITY not in resource.getrlimit(resource.RLIMIT_AS),
    "no_new_privileges": lambda: _status("NoNewPrivs") == 1,
    "no_capabilities": lambda: _status("CapEff") == _status("CapPrm") == 0,
}


def _refused(attempt: Callable[[str], object], outside: str) -> bool:
    """Whether the kernel refuses the permission; any other answer means that it let the attempt through."""
    try:
        attempt(outside)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _dial(_: str) -> None:
    with socket.socket() as line:
        line.settimeout(1)
        line.connect(("127.0.0.1", 9))


def _fork(_: str) -> None:
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


ATTEMPTS: dict[str, Callable[[str], object]] = {
    "refuses_files": lambda outside: Path(outside).read_bytes(),
    "refuses_network": _dial,
    "refuses_processes": _fork,
    "refuses_signals": lambda _: os.kill(os.getppid(), 0),
    "refuses_programs": lambda outside: os.execv(outside, [outside]),  # noqa: S606  no program, and that is the point
}
