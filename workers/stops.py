"""Why a job is to stop: looked up in its row, its lease and its worker."""

import time
from enum import StrEnum

from sqlalchemy import select

from service.contract.database import clock
from service.contract.errors import Unavailable
from service.contract.records import JobRecord, JobState
from workers.station import Station
from workers.tenure import Tenure

LOOK_SECONDS = 1.0  # how often the row is looked at


class Stop(StrEnum):
    """Why a job is to stop."""

    LOST = "lost"  #: another worker may have it
    CANCEL = "cancel"  #: its owner asked
    PAUSE = "pause"  #: its owner asked
    DEADLINE = "deadline"  #: it took too long
    DRAIN = "drain"  #: this worker is leaving


class Interrupted(Exception):
    """The job is to stop before its child was started."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop)
        self.stop = stop


class StopWatch:
    """Knows whether one job is to stop."""

    def __init__(self, station: Station, tenure: Tenure[tuple[JobState, bool]]) -> None:
        self._station, self._tenure = station, tenure
        self._looked_at = 0.0
        self._seen: Stop | None = None

    def wanted(self) -> Stop | None:
        """Return why the job is to stop now, the strongest reason first; None when it is not."""
        if self._tenure.lost:
            return Stop.LOST
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._look()
            self._looked_at = time.monotonic()
        return self._seen or (Stop.DRAIN if self._station.draining.is_set() else None)

    def _look(self) -> None:
        held = self._tenure.claim
        row = select(JobRecord.state, JobRecord.epoch, JobRecord.deadline_at < clock())
        try:
            with self._station.database.read() as session:
                found = session.execute(row.where(JobRecord.id == held.id)).one_or_none()
        except Unavailable:
            return  # the tenure complains, and ends when this lasts
        if found is None or found[1] != held.epoch:
            self._seen = Stop.LOST
        elif found[0] == JobState.CANCELLING:
            self._seen = Stop.CANCEL
        elif found[0] == JobState.PAUSING:
            self._seen = Stop.PAUSE
        elif found[2]:
            self._seen = Stop.DEADLINE

    def check(self) -> None:
        """Raise Interrupted when the job is to stop."""
        if (stop := self.wanted()) is not None:
            raise Interrupted(stop)
