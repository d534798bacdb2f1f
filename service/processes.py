"""Child processes: started tethered, watched, started again when they die, and stopped in order.

Each child leads a session of its own, so that Ctrl-C reaches the parent alone and the parent decides
the order of stopping. All calls belong to the parent's main thread: the tether ends a child when the
thread that started it ends.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

TETHER = Path(__file__).with_name("tether.py")
FIRST_BACKOFF, LONGEST_BACKOFF = 0.2, 10.0  # seconds before a dead child is started again
STEADY_SECONDS = 30.0  # a child that lived this long starts with a clean record
LOG_BYTES = 16 * 2**20  # at a start, a longer log is put aside


@dataclass(frozen=True)
class Command:
    """What to run, and how to end it: each signal with the seconds to wait after it, then SIGKILL."""

    name: str
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    folder: Path
    log: Path
    stop: tuple[tuple[signal.Signals, float], ...]
    pass_fds: tuple[int, ...] = ()


class Child:
    """One command's process, and when it is to be started again."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.start_at: float | None = None
        self.deaths_in_a_row = 0

    def start(self) -> None:
        """Start the process; its output is appended to its log."""
        put_aside(self.command.log)
        argv = [sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), *self.command.argv]
        with self.command.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603  our own command
                argv,
                cwd=self.command.folder,
                env=self.command.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=self.command.pass_fds,
            )
        self.started_at, self.start_at = time.monotonic(), None

    def has_ended(self) -> bool:
        """Whether the process is gone; whatever it left in its process group is then gone too."""
        if self.process is None or self.process.returncode is not None:
            return True
        if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return False
        self.send(signal.SIGKILL)  # before the process is reaped, so that the group's number is still its own
        self.process.wait()
        return True

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to the process; SIGKILL goes to its whole group."""
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                (os.killpg if signum == signal.SIGKILL else os.kill)(self.process.pid, signum)

    def restart_when_due(self, report: Callable[[str], None]) -> None:
        """Notice a death and say so; start the process again once its back-off is over."""
        now = time.monotonic()
        if self.start_at is not None:
            if now >= self.start_at:
                self.start()
        elif self.has_ended() and self.process is not None:
            self.deaths_in_a_row = 1 if now - self.started_at > STEADY_SECONDS else self.deaths_in_a_row + 1
            backoff = min(FIRST_BACKOFF * 2 ** (self.deaths_in_a_row - 1), LONGEST_BACKOFF)
            self.start_at = now + backoff
            report(
                f"{self.command.name} ended ({ending(self.process.returncode)}); starting it again in {backoff:g} s "
                f"(its log: {self.command.log})"
            )


def ending(returncode: int) -> str:
    """Say in words how a process ended."""
    return f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"exit code {returncode}"


def put_aside(log: Path) -> None:
    """Rename a log that has grown long, so that each child keeps at most two."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))


def stop(children: Sequence[Child], is_hurried: Callable[[], bool]) -> None:
    """End these processes together, each by its command's signals; all are gone on return."""
    steps = {child.command.name: iter((*child.command.stop, (signal.SIGKILL, 60.0))) for child in children}
    next_step_at = dict.fromkeys(steps, 0.0)
    while running := [child for child in children if not child.has_ended()]:
        for child in running:
            name = child.command.name
            if is_hurried():
                child.send(signal.SIGKILL)
            elif time.monotonic() >= next_step_at[name]:
                signum, patience = next(steps[name], (signal.SIGKILL, 60.0))
                child.send(signum)
                next_step_at[name] = time.monotonic() + patience
        time.sleep(0.02)


class Signals:
    """The parent's signals as things to wait for: `wait` returns early when one arrives."""

    ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.received = 0  # how many asked the parent to end
        self._read, self._write = socket.socketpair()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._read.setblocking(False)
        self._write.setblocking(False)
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        for signum in self.ENDING:
            self._previous[signum] = signal.signal(signum, self._count)
        self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]  # what signal.signal itself returned
        self._read.close()
        self._write.close()

    def _count(self, _signum: int, _frame: FrameType | None) -> None:
        self.received += 1

    def wait(self, seconds: float) -> None:
        """Sleep, at most until the next signal."""
        if select.select([self._read], [], [], seconds)[0]:
            with suppress(BlockingIOError):
                while self._read.recv(1024):
                    pass


class Tail:
    """Follows a log from where it now ends."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.position = log.stat().st_size if log.exists() else 0

    def new_lines(self) -> list[str]:
        """Return the whole lines written since the last call."""
        if not self.log.exists():
            return []
        if self.log.stat().st_size < self.position:  # it was put aside
            self.position = 0
        with self.log.open("rb") as file:
            file.seek(self.position)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.position += len(whole)
        return whole.decode(errors="replace").splitlines()
