"""The folder on its machine: disk, permissions, the broker's socket."""

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from service.doctor.findings import Premises, Problem, error, in_bytes, warning

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def disk(premises: Premises) -> Iterator[Problem]:
    """Whether the disks of the database and of the files have room."""
    least = premises.settings.min_free_bytes
    for device, folder in {path.stat().st_dev: path for path in _roots(premises)}.items():
        free = shutil.disk_usage(folder).free
        text = f"{in_bytes(free)} are free on the disk of {folder} (device {os.major(device)}:{os.minor(device)})"
        if free < least:
            yield error(
                f"{text}; the service takes no work below {in_bytes(least)} (STILLHOUSE_MIN_FREE_BYTES)",
                "delete models, datasets and failed jobs, or give it a larger disk",
            )
        elif free < 2 * least:
            yield warning(text, f"below {in_bytes(least)} the service takes no work; make room")


def _roots(premises: Premises) -> Iterator[Path]:
    yield premises.settings.data_dir
    yield premises.storage.root


def permissions(premises: Premises) -> Iterator[Problem]:
    """Whether the service can write where it must, and others cannot read what is private."""
    folder = premises.settings.data_dir
    inside = [folder, *(path for path in folder.iterdir() if not path.is_symlink()), *_roots(premises)]
    foreign = sorted({str(path) for path in inside if path.lstat().st_uid != folder.stat().st_uid})
    if foreign:
        yield warning(
            f"not everything belongs to the owner of {folder} (user {folder.stat().st_uid})",
            "if the service runs as that user, give it these files: chown -R",
            foreign,
        )
    closed = [
        str(path)
        for path in dict.fromkeys(inside)
        if not path.is_socket() and not os.access(path, os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0))
    ]
    if closed:
        yield error("this user may not read and write everything", "run this as the service's user, or chown", closed)
    if stat.S_IMODE(folder.stat().st_mode) & OTHERS:
        yield warning(f"others on this machine can look into {folder}", f"chmod go= {folder}")


def broker(premises: Premises) -> Iterator[Problem]:
    """Whether the embedded broker's socket is what the folder's lock says it is."""
    path = premises.settings.data_dir / "run" / "valkey.sock"
    if premises.settings.broker_url is not None or not path.exists():
        return
    answers = _answers(path)
    if premises.is_served and not answers:
        yield error(
            f"the service runs, and its broker does not answer on {path}",
            "see logs/valkey.log; the service starts its broker again, or else start the service again",
        )
    elif not premises.is_served and answers:
        yield error(
            f"a broker answers on {path}, and no service holds the folder",
            "end that valkey-server, or the next start fails",
        )
    elif not premises.is_served:
        yield warning(f"{path} is left of a broker that is gone", "nothing: the next start replaces it", (str(path),))


def _answers(path: Path) -> bool:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2.0)
        connection.connect(str(path))
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")
    return False
