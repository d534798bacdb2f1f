"""The reading child, watched from inside: what it asks of the interpreter, and what it costs.

Python tells an audit hook of every file that is opened, every socket, every process and every name that a pickle
imports, whether or not the kernel then refuses it. What a hostile file must not even try is listed here.
"""

import json
import os
import resource
import site
import sys
from pathlib import Path
from typing import Any

from workers import reader
from workers.formats import datasets, models  # noqa: F401  as they are when the reading begins
from workers.lifeline import Lifeline

NEVER = {
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"),
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn"),
    *("pickle.find_class", "os.symlink", "os.link", "os.chmod", "os.chown", "os.kill", "os.putenv", "urllib.Request"),
    *("ctypes.dlopen", "shutil.chown", "webbrowser.open", "tempfile.mkstemp", "tempfile.mkdtemp", "os.chdir"),
}
SYSTEM = ("/proc/", "/sys/", "/dev/", "/usr/share/zoneinfo", "/etc/localtime")
INSTALLED = [sys.prefix, sys.base_prefix, *site.getsitepackages(), str(Path(__file__).parents[2])]
USAGE = "usage.json"


def read(order_text: str, lifeline: Lifeline) -> None:
    """As `workers.reader.read`; `USAGE` in the scratch folder says what it did."""
    order = reader.ReadOrder.model_validate_json(order_text)
    seen: list[str] = []
    watch(order, seen)
    before = status("VmRSS")
    word = reader._last_word(order)
    spent = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "attempts": seen[:20],
        "grown_bytes": status("VmHWM") - before,
        "cpu_seconds": spent.ru_utime + spent.ru_stime,
        "seccomp": seccomp_mode(),
        "user": os.getuid(),
    }
    (order.scratch / USAGE).write_text(json.dumps(found))
    lifeline.channel.send(word)


def watch(order: reader.ReadOrder, seen: list[str]) -> None:
    """Note from now on what is tried and has no place in a reading."""
    own = [f"{folder}/" for folder in (order.folder, order.out, order.scratch)]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in NEVER:
            seen.append(f"{event} {arguments!r}"[:300])
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100  no pathlib: it would be audited itself
            writes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if arguments[2] else False
            if not path.startswith(tuple(own)) and (writes or not path.startswith((*SYSTEM, *INSTALLED))):
                seen.append(f"open {path} {'to write' if writes else ''}")
        elif event in {"os.mkdir", "os.remove", "os.rename", "os.rmdir"}:
            path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100  as above
            if not f"{path}/".startswith(tuple(own)):
                seen.append(f"{event} {path}")

    sys.addaudithook(hook)


def status(field: str) -> int:
    """A size that the kernel tells of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def seccomp_mode() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Seccomp:"))
