"""A process that enters the jail, tries to get out in every way it knows, and prints how each attempt ended.

    python -m tests.unit.workers.prisoner FOLDER LAYERS USER

FOLDER holds `in/file`, `out/` and `secret`; LAYERS is "all", "landlock" or "seccomp"; USER is the
number of the user to become before entering, or "same".
"""

import ctypes
import errno
import fcntl
import json
import os
import pickle
import resource
import signal
import socket
import sys
import tempfile
import termios
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from workers.jail import jail, kernel, landlock, seccomp, syscalls
from workers.jail.seccomp import COLUMN
from workers.limits import Limits

ARCHITECTURE = kernel.architecture() or "x86_64"
Column = tuple[int | None, int | None]
FORBIDDEN: dict[str, Column] = {  # numbers on x86_64 and aarch64
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "unshare": (272, 97),
    "setns": (308, 268),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "link": (86, None),
    "linkat": (265, 37),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "chown": (92, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setgroups": (116, 159),
    "capset": (126, 91),
    "personality": (135, 92),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "acct": (163, 89),
    "open_by_handle_at": (304, None),
    "name_to_handle_at": (303, None),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    "timer_create": (222, 107),
    "setpriority": (141, 140),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "clock_settime": (227, 112),
    "settimeofday": (164, 170),
    "sethostname": (170, 161),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "quotactl": (179, 60),
    "setrlimit": (160, 164),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "splice": (275, 76),
    "vmsplice": (278, 75),
    "tee": (276, 77),
    "landlock_create_ruleset": (444, 444),
    "seccomp": (317, 277),
    "openat2": (437, 437),
    "chdir": (80, 49),
}
HIGHEST = 1024  # no architecture has as many calls
UPROBES = {335, 336}  # on x86_64 the kernel asks no filter; a call from elsewhere than its own trampoline is fatal
X32 = 1 << 30


def number_of(name: str) -> int | None:
    return {**FORBIDDEN, **{key: call.numbers for key, call in syscalls.conditional().items()}}[name][
        COLUMN[ARCHITECTURE]
    ]


def call(name: str, *arguments: int) -> int:
    number = number_of(name)
    assert number is not None
    return kernel.syscall(number, *arguments)


class OpensAFile:
    """What a pickle does when it is loaded: it calls what it names."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path,)


def write_into(path: Path) -> None:
    path.write_text("changed")


def udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.sendto(b"x", ("127.0.0.1", 9))


def tcp() -> None:
    with socket.socket() as line:
        line.settimeout(1)
        line.connect(("127.0.0.1", 9))


def listen() -> None:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))


def fork() -> None:
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


def clone(flags: int) -> None:
    """As `fork` does it on newer architectures: SIGCHLD, and no CLONE_THREAD."""
    if call("clone", flags | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        os._exit(0)
    os.wait()


def signal_by_io(target: int) -> None:
    """Have a pipe send a signal of one's choice to another process."""
    reading, _ = os.pipe()
    fcntl.fcntl(reading, fcntl.F_SETOWN, target)


def attempts(folder: Path) -> dict[str, Callable[[], Any]]:
    given, secret, parent = folder / "in" / "file", folder / "secret", os.getppid()
    no_core = ctypes.create_string_buffer(16)
    return {
        "read a file outside": secret.read_text,
        "read the users' list": Path("/etc/passwd").read_text,
        "read through a link in the input": (folder / "in" / "link").read_text,
        "read a file of a pickle's choice": lambda: pickle.loads(pickle.dumps(OpensAFile("/etc/passwd"))),
        "list a folder outside": lambda: list(folder.iterdir()),
        "read the parent's environment": Path(f"/proc/{parent}/environ").read_bytes,
        "read the parent's memory": lambda: Path(f"/proc/{parent}/mem").open("rb"),
        "reach a file through the parent's root": lambda: list(Path("/proc", str(parent), "root").iterdir()),
        "write a file outside": lambda: write_into(secret),
        "make a file outside": lambda: write_into(folder / "new"),
        "make a file in the system's scratch folder": lambda: tempfile.TemporaryFile(dir="/dev/shm").close(),
        "change its input": lambda: write_into(given),
        "remove its input": given.unlink,
        "cut its input": lambda: os.truncate(given, 0),
        "move its input": lambda: given.rename(folder / "out" / "moved"),
        "write its own code": lambda: Path(jail.__file__).open("a").close(),
        "make a symbolic link": lambda: (folder / "out" / "link").symlink_to(secret),
        "make a hard link to a file outside": lambda: (folder / "out" / "hard").hardlink_to(secret),
        "make a pipe with a name": lambda: os.mkfifo(folder / "out" / "fifo"),
        "change a file's mode": lambda: secret.chmod(0o666),
        "change a file's owner": lambda: os.chown(secret, 1, 1),
        "change a file's times": lambda: os.utime(secret, (0, 0)),
        "dial by TCP": tcp,
        "listen by TCP": listen,
        "send by UDP": udp,
        "open a Unix socket": lambda: socket.socket(socket.AF_UNIX),
        "run a program": lambda: os.execv(secret, [str(secret)]),
        "run a shell": lambda: os.posix_spawn("/bin/sh", ["sh", "-c", "true"], {}),
        "fork": fork,
        "clone a process": lambda: clone(0),
        "clone into a new user namespace": lambda: clone(0x10000000),
        "signal the parent": lambda: os.kill(parent, 0),
        "signal a thread of the parent": lambda: call("tgkill", parent, parent, 0),
        "signal everybody": lambda: os.kill(-1, 0),
        "signal by way of a pipe": lambda: signal_by_io(parent),
        "trace the parent": lambda: call("ptrace", 16, parent, 0, 0),
        "read the parent's memory by a call": lambda: call("process_vm_readv", parent, 0, 0, 0, 0, 0),
        "type into the terminal": lambda: fcntl.ioctl(0, termios.TIOCSTI, b"x"),
        "limit the parent": lambda: call("prlimit64", parent, 0, 0, 0),
        "set a limit": lambda: call("prlimit64", 0, resource.RLIMIT_CORE, ctypes.addressof(no_core), 0),
        "become inspectable again": lambda: kernel.prctl(kernel.PR_SET_DUMPABLE, 1),
        "outlive its parent": lambda: kernel.prctl(1, 0),
        "write to a descriptor that was left open": lambda: os.write(int(os.environ["LEFT_OPEN"]), b"x"),
    }


def honest(folder: Path) -> dict[str, Callable[[], Any]]:
    """What must go on working."""
    given, out = folder / "in" / "file", folder / "out"
    started = threading.Event()

    def make_and_change() -> None:
        (out / "deep").mkdir()
        (out / "deep" / "one").write_text("1" * 100)
        (out / "deep" / "one").rename(out / "two")
        os.truncate(out / "two", 10)
        assert (out / "two").read_text() == "1" * 10
        (out / "two").unlink()
        (out / "deep").rmdir()

    def run_a_thread() -> None:
        thread = threading.Thread(target=started.set)
        thread.start()
        thread.join(10)
        assert started.is_set()

    return {
        "keep something while it works": lambda: tempfile.TemporaryFile().close(),
        "read its input": lambda: given.read_text() == "given" or 1 / 0,
        "list its input": lambda: list((folder / "in").iterdir()),
        "make, change and remove files in its output": make_and_change,
        "run a thread": run_a_thread,
        "signal itself": lambda: os.kill(os.getpid(), 0),
        "signal its own group": lambda: os.killpg(os.getpid(), 0),
        "import a module late": lambda: __import__("sqlite3"),
        "say something": sys.stderr.flush,
    }


def outcome(attempt: Callable[[], Any]) -> str:
    """The name of the error, or "done"."""
    try:
        attempt()
    except ImportError:
        return "ImportError"
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def sweep() -> dict[str, list[int]]:
    """Make every call that no table lists, without arguments: numbers by how they ended."""
    column = COLUMN[ARCHITECTURE]
    tables = [*syscalls.ALLOWED.values(), *(entry.numbers for entry in syscalls.conditional().values())]
    spared = {numbers[column] for numbers in tables}
    found: dict[str, list[int]] = {}
    numbers = [number for number in range(HIGHEST) if number not in spared | UPROBES]
    for number in [*numbers, *(X32 | number for number in range(HIGHEST))]:
        end = outcome(partial(kernel.syscall, number, *6 * [0]))
        found.setdefault(end, []).append(number)
    return found


def become(user: str) -> None:
    if user != "same":
        os.setgroups([])
        os.setgid(int(user))
        os.setuid(int(user))


def main(folder: Path, layers: str, user: str) -> None:
    if layers == "landlock":
        seccomp.offered = lambda *_: False
    if layers == "seccomp":
        landlock.offer = lambda: (0, "")
    os.environ["LEFT_OPEN"] = str(os.dup(1))
    os.setsid()
    become(user)
    cell = jail.Cell((folder / "in",), (folder / "out",), folder / "scratch", Limits(1 << 30, 60, 1 << 20))
    jail.enter(cell)
    found = {
        "honest": {name: outcome(attempt) for name, attempt in honest(folder).items()},
        "attempts": {name: outcome(attempt) for name, attempt in attempts(folder).items()},
        "status": Path("/proc/self/status").read_text(),
    }
    if layers != "landlock":  # without the filter some of them would work
        assert "Seccomp:\t2" in found["status"]
        found["sweep"] = sweep()
        found["named"] = {name: outcome(partial(call, name)) for name in FORBIDDEN if number_of(name)}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
