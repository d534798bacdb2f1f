"""Looks for what was lost: jobs and inspections whose worker died, messages, and what the dead left behind.

Every worker process sweeps; the conditional updates of the contract make that harmless. A waiting
job is rung for only when there are fewer messages than waiting jobs, so that rings never pile up.
"""

import random
import threading
from collections.abc import Callable

from sqlalchemy import delete, func, select
from structlog import get_logger

from service.contract import jobs, queue, resources
from service.contract.database import clock
from service.contract.errors import Unavailable
from service.contract.records import WorkerRecord
from workers.folders import remove_abandoned
from workers.station import Station

FORGET_WORKER_SECONDS = 3600.0
log = get_logger(__name__)


def sweep_jobs(station: Station) -> None:
    """Requeue what lost its worker; ring for what waits."""
    with station.database.write() as session:
        waiting = jobs.sweep(session, station.settings.max_attempts)
    _ring_missing(station, "jobs", waiting)


def sweep_inspections(station: Station) -> None:
    """Free the inspections that lost their worker; ring for what waits."""
    with station.database.write() as session:
        waiting = resources.sweep_inspections(session, station.settings.max_attempts)
    _ring_missing(station, "inspections", waiting)


def _ring_missing(station: Station, name: queue.Queue, waiting: list[str]) -> None:
    if not waiting:
        return
    missing = len(waiting) - queue.depth(station.celery, name)
    for resource_id in waiting[: max(missing, 0)]:
        queue.ring(station.celery, name, resource_id)


def sweep_folders(station: Station) -> None:
    """Remove the folders of jobs and readings whose worker died."""
    for parent in (station.settings.jobs_dir, station.settings.cache_dir / "incoming"):
        for name in remove_abandoned(parent):
            log.info("removed an abandoned folder", folder=name)


def sweep_workers(station: Station) -> None:
    """Forget workers that have been silent for long."""
    silent = WorkerRecord.heartbeat_at < clock() - FORGET_WORKER_SECONDS
    with station.database.read() as session:
        if not session.scalar(select(func.count()).select_from(WorkerRecord).where(silent)):
            return
    with station.database.write() as session:
        session.execute(delete(WorkerRecord).where(silent))


SWEEPS: tuple[Callable[[Station], None], ...] = (sweep_jobs, sweep_inspections, sweep_folders, sweep_workers)


def sweep(station: Station) -> None:
    """Do every sweep once; one that fails is logged and does not keep the others from their turn."""
    for part in SWEEPS:
        try:
            part(station)
        except Unavailable as error:
            log.warning("could not sweep", sweep=part.__name__, error=error.detail)
        except Exception:
            log.exception("a sweep failed", sweep=part.__name__)


class Sweeper:
    """Sweeps on a thread, at intervals that keep many workers from sweeping in step."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Begin to sweep, at once."""
        self._thread.start()

    def _run(self) -> None:
        while not self._leaving.is_set():
            sweep(self._station)
            self._leaving.wait(self._station.settings.sweep_seconds * random.uniform(0.8, 1.2))  # noqa: S311  no secret

    def leave(self) -> None:
        """Sweep no more."""
        self._leaving.set()
        self._thread.join(timeout=5)
