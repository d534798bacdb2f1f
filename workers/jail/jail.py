"""The jail: what a process gives up before it opens the first untrusted byte. There is no way out.

Layers, each of which would do alone for what it covers:

    rlimits             memory, CPU time, size of files, number of threads   (`workers.limits`)
    no new privileges   set-user-ID programs gain nothing; the two below need it
    not inspectable     no process of the same user may read its memory
    capabilities        what root may do more than others is given up
    descriptors         closed, but the pipe to the supervisor and standard error
    Landlock            only its own input, read-only, and its own output; no TCP, no signals
    seccomp             only the system calls that reading files and computing needs

Landlock and seccomp are the kernel's to offer: where one is missing the process goes on with the
rest, and the worker says so at its start (`workers.jail.probe`). A layer that is offered and then
cannot be entered ends the process: better no reading than one outside.

Nothing here needs root, a user namespace or a setting of the container.
"""

import contextlib
import os
import site
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import service
import workers
from workers import limits
from workers.jail import kernel, landlock, seccomp

NOT_ENTERED = 77  # exit code: EX_NOPERM
SYSTEM = (  # what libraries read late: the loader's cache, zone files, the number of processors, memory
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"),
    *("/usr/share/zoneinfo", "/etc/localtime", "/dev/null", "/dev/zero", "/dev/urandom"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm/overcommit_memory"),
    *("/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/fs/cgroup", "/sys/kernel/mm/transparent_hugepage"),
)


@dataclass(frozen=True)
class Cell:
    """What one process is left with: files below folders that exist, and its limits.

    `scratch` is for what libraries keep while they work; nobody looks at it afterwards.
    """

    readable: tuple[Path, ...]
    writable: tuple[Path, ...]
    scratch: Path
    limits: limits.Limits


def enter(cell: Cell, *, keep: tuple[int, ...] = ()) -> None:
    """Confine this process, which must still have one thread, for the rest of its life.

    `keep` are the descriptors that stay open beside the standard ones. Raises OSError; RuntimeError when
    there are threads already.
    """
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        raise RuntimeError("enter the jail before any thread starts: Landlock would leave the others outside")
    architecture = kernel.architecture()
    filtering = seccomp.offered(architecture)
    abi, _ = landlock.offer() if architecture else (0, "")
    limits.confine(cell.limits)
    kernel.forbid_inspection()
    kernel.drop_capabilities()
    os.environ["TMPDIR"] = tempfile.tempdir = str(cell.scratch)
    _close_all_but(keep)
    if abi:
        readable = [*_installation(), *map(Path, SYSTEM), *cell.readable]
        landlock.restrict(abi, readable, [*cell.writable, cell.scratch])
    if filtering and architecture:
        seccomp.restrict(architecture)


def _close_all_but(keep: tuple[int, ...]) -> None:
    """Close what a fork left open: the tracker of shared resources would remove files on request."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208  names, not paths
        if descriptor > 2 and descriptor not in keep:
            with contextlib.suppress(OSError):  # the listing's own is closed already
                os.close(descriptor)


def _installation() -> list[Path]:
    """Return where Python, its packages and our own code lie: folders of code, never a folder that holds data."""
    packages = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages", "lib-dynload"}]
    folders = [f"{sys.base_prefix}/lib", os.path.dirname(os.__file__), *site.getsitepackages(), *packages]  # noqa: PTH120
    return [Path(folder) for folder in dict.fromkeys([*folders, *service.__path__, *workers.__path__])]
