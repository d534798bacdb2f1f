"""Child processes: started from a fork server that has imported torch already, ended without fail.

The Celery process never imports torch: it names the function to run ("module:function"), and the
child looks it up. A fork of the fork server is cheap and inherits torch, but neither threads nor a
CUDA context, which no fork survives.

Signals are for the Celery process alone. The fork server and its children ignore SIGTERM and
SIGINT, even when the whole group or control group receives them, so that a job can be asked to
take its last checkpoint.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import time
import traceback
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from workers import limits
from workers.jail import jail
from workers.jail.environment import without_secrets
from workers.lifeline import Lifeline
from workers.pipe import Channel, LastWord, Message, StopRequest

PRELOAD = ["workers.child", "workers.runner", "torch._dynamo"]  # the last is imported by the first optimizer or model
CONTEXT = multiprocessing.get_context("forkserver")
HELD_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP}
IMPORTED_BY = os.getpid()  # in a child of a fork server that preloaded this module: the fork server
JOIN_SECONDS = 5.0
MAX_BATCH = 1024


def warm() -> None:
    """Start the fork server unless it runs; call it first from a thread that lives as long as the process."""
    CONTEXT.set_forkserver_preload(PRELOAD)
    resource_tracker.ensure_running()  # else the fork server's start does it, and unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    try:
        with contextlib.nullcontext() if _fork_server_runs() else without_secrets():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _fork_server_runs() -> bool:
    server: Any = forkserver._forkserver  # noqa: SLF001  there is no public way
    pid = getattr(server, "_forkserver_pid", None)
    if pid is None:
        return False
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def wait_until_warm() -> None:
    """Return once the fork server has imported what it preloads, and children start at once."""
    Child("workers.child:rest", "").end()


class Child:
    """A running child, as its supervisor sees it."""

    def __init__(
        self, entry: str, order: str, lease_seconds: float | None = None, cell: jail.Cell | None = None
    ) -> None:
        """Start `entry` ("module:function"), which is called with `order` and its `Lifeline`.

        With `lease_seconds` it waits for its first `Beat` before it does anything. With a `cell` it
        is jailed before it does anything; a child that cannot be ends with `jail.NOT_ENTERED`.
        """
        warm()
        here, there = CONTEXT.Pipe()
        self.memory_kills_before = limits.kernel_memory_kills()
        self.peak_memory = 0
        self.process = CONTEXT.Process(target=_main, args=(entry, order, there, lease_seconds, cell), daemon=True)
        self.process.start()
        there.close()
        self.channel = Channel(here)
        self._at_end = False

    def send(self, message: Message) -> None:
        """Send, if there is still somebody to hear it."""
        with contextlib.suppress(OSError):
            self.channel.send(message)

    def ask_to_stop(self) -> None:
        """Ask for a last checkpoint and an end."""
        self.send(StopRequest())

    def receive(self, seconds: float) -> Message | None:
        """Return the next message; None when none came in time, or when none will come (`at_end`)."""
        self._watch_memory()
        ready = wait([self.channel.connection, self.process.sentinel], seconds)
        if not ready:
            return None
        if not self.channel.poll(0):
            self._at_end = True
            return None
        try:
            return self.channel.receive()
        except (EOFError, OSError, ValueError):  # gone, or it speaks nonsense: either way it has nothing to tell
            self._at_end = True
            return None

    def receive_all(self, seconds: float) -> list[Message]:
        """Return what comes within `seconds`, or sooner, with a last word or a death.

        It waits although something has come already: many reports shall cost one transaction, or a
        talkative job would keep the one writer's place of SQLite from the heartbeats of others.
        """
        messages: list[Message] = []
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and len(messages) < MAX_BATCH:
            message = self.receive(left)
            if message is not None:
                messages.append(message)
            if self.at_end or isinstance(message, LastWord):
                break
        return messages

    @property
    def at_end(self) -> bool:
        """Whether the child is dead or dying, and all it said has been received."""
        return self._at_end

    def _watch_memory(self) -> None:
        self.peak_memory = max(self.peak_memory, limits.peak_memory(self.process.pid or 0) or 0)

    def end(self) -> int | None:
        """Kill the child with its whole process group, if it still runs; return its exit code."""
        if self._at_end:
            self.process.join(JOIN_SECONDS)  # it is dying by itself: its own exit code tells why
        if self.process.exitcode is None and self.process.pid is not None:
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError):
                    kill(self.process.pid, signal.SIGKILL)
            self.process.join(JOIN_SECONDS)
        self.channel.close()
        return self.process.exitcode

    def ran_out_of_memory(self) -> bool:
        """Whether a SIGKILL that nobody here sent was most likely the kernel's, for want of memory."""
        killed = limits.kernel_memory_kills() > self.memory_kills_before
        return killed or self.peak_memory >= 0.9 * limits.memory_limit()


def death(child: Child, exit_code: int | None) -> str:
    """Say in words how a child died that had not been asked to."""
    if exit_code == -signal.SIGKILL and child.ran_out_of_memory():
        return (
            f"the job's process was killed for using {limits.in_gib(child.peak_memory)} of memory "
            f"(limit {limits.in_gib(limits.memory_limit())}); try a smaller batch size"
        )
    if exit_code is not None and exit_code < 0:
        cause = f"was ended by {signal.Signals(-exit_code).name}"
    elif exit_code in {None, 255}:
        cause = "was lost with the process that starts jobs"
    else:
        cause = f"ended with exit code {exit_code} and without a result"
    return f"the job's process {cause}; it held up to {limits.in_gib(child.peak_memory)} of memory"


# In the child ------------------------------------------------------------------------------------


def _main(entry: str, order: str, connection: Connection, lease_seconds: float | None, cell: jail.Cell | None) -> None:
    limits.die_with_parent()
    if IMPORTED_BY not in {os.getpid(), os.getppid()}:
        os._exit(1)  # the fork server died before the kernel knew what to do then
    _let_the_fork_server_go()
    os.setsid()
    for number in HELD_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)
    limits.forbid_core_dumps()
    module, _, name = entry.partition(":")
    function = getattr(importlib.import_module(module), name)
    if cell is not None:
        _enter(cell, connection)  # before there is a second thread, which Landlock would leave outside
    lifeline = Lifeline(Channel(connection), lease_seconds)
    lifeline.start()
    function(order, lifeline)


def _enter(cell: jail.Cell, connection: Connection) -> None:
    try:
        jail.enter(cell, keep=(connection.fileno(),))
    except Exception:  # noqa: BLE001  whatever it is: better no reading than one outside
        traceback.print_exc()
        os._exit(jail.NOT_ENTERED)


def rest(_order: str, _lifeline: Lifeline) -> None:
    """Do nothing: the child whose start shows that the fork server is warm."""


def _let_the_fork_server_go() -> None:
    """Close this child's copy of the pipe that keeps the fork server alive.

    Python hands each child a copy, so that it could start processes from the same server; with it
    open, a job would keep the server alive, and the server the job, after the Celery process died.
    """
    server: Any = forkserver._forkserver  # noqa: SLF001  there is no public way
    descriptor = getattr(server, "_forkserver_alive_fd", None)
    if descriptor is not None:
        os.close(descriptor)
        server._forkserver_alive_fd = None  # noqa: SLF001  as above
