"""A worker's row: who it is, where it runs and what it works on, renewed while it lives."""

import contextlib
import os
import platform
import socket
import threading
from importlib.metadata import version
from typing import Any

from sqlalchemy import delete, update
from structlog import get_logger

from service.contract.database import clock
from service.contract.errors import Unavailable
from service.contract.queue import Queue
from service.contract.records import WorkerRecord
from workers import limits
from workers.jail.probe import Facts
from workers.station import Station

log = get_logger(__name__)


def facts(station: Station, slot: str, jail: Facts) -> dict[str, Any]:
    """Return what a worker says of itself; memory is in bytes, `jail` is what confines its readers."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "slot": slot,
        "device": station.settings.device,
        "cpus": os.cpu_count(),
        "memory_bytes": limits.memory_limit(),
        "version": version("stillhouse"),
        "python": platform.python_version(),
        "jail": jail,
    }


class Presence:
    """Keeps the row on a thread, from `start` to `leave`."""

    def __init__(self, station: Station, queue: Queue, slot: str, jail: Facts) -> None:
        self._station, self._queue = station, queue
        self._facts = facts(station, slot, jail)
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="presence", daemon=True)

    def start(self) -> None:
        """Begin to be seen."""
        self._thread.start()

    def _keep(self) -> None:
        while not self._leaving.is_set():
            try:
                self.show()
            except Unavailable as error:
                log.warning("could not show this worker's presence", error=error.detail)
            self._leaving.wait(self._station.settings.heartbeat_seconds)

    def show(self) -> None:
        """Write the row as it is now. Raises Unavailable."""
        station = self._station
        mine = WorkerRecord.id == station.worker
        with station.database.write() as session:
            seen = update(WorkerRecord).where(mine).values(heartbeat_at=clock(), job_id=station.job_id)
            if session.execute(seen).rowcount == 0:  # type: ignore[attr-defined]  # an UPDATE's result has it
                session.add(
                    WorkerRecord(id=station.worker, queue=self._queue, facts=self._facts, job_id=station.job_id)
                )

    def leave(self) -> None:
        """Take the row away: this worker has left in order."""
        self._leaving.set()
        self._thread.join(timeout=5)
        with contextlib.suppress(Unavailable), self._station.database.write() as session:
            session.execute(delete(WorkerRecord).where(WorkerRecord.id == self._station.worker))
