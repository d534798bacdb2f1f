"""What a child tells, written down: its reports in the database, its checkpoints in the storage.

Many reports become one transaction, so that a child that talks fast does not leave its supervisor
behind. A checkpoint is recorded once it is stored; then the one before the last is deleted.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session
from structlog import get_logger

from service.contract import contents, jobs
from service.contract.errors import StillhouseError, Unavailable
from service.contract.leases import Claim
from service.contract.records import JobRecord
from workers import checkpoints
from workers.checkpoints import Checkpoint
from workers.pipe import Checkpointed, Measured, Message, Progressed, StageBegan, Told
from workers.station import Station
from workers.tenure import Tenure

Report = StageBegan | Measured | Told | Progressed
log = get_logger(__name__)


class Chronicle:
    """Writes for one attempt at a job; `checkpoint` is the last that was recorded."""

    def __init__(self, station: Station, tenure: Tenure[Any], job: JobRecord) -> None:
        self._station, self._tenure = station, tenure
        self.checkpoint = checkpoints.recorded(job.checkpoint)
        self._kept = set(self.checkpoint.digests if self.checkpoint else [])

    @property
    def num_threads(self) -> int:
        """The threads of an earlier attempt's checkpoint, if there is one: the same bits need the same threads."""
        if self.checkpoint is not None:
            return self.checkpoint.num_threads
        return self._station.settings.num_threads or os.cpu_count() or 1

    def record(self, messages: Sequence[Message]) -> None:
        """Write what was told; of progress and checkpoints only the newest counts. Raises LeaseLost."""
        progress = [found for found in messages if isinstance(found, Progressed)][-1:]
        reports = [found for found in messages if isinstance(found, StageBegan | Measured | Told) or found in progress]

        def write(session: Session) -> None:
            for report in reports:
                _write(session, self._tenure.claim, report)

        if reports:
            self._tenure.write(write)
        for newest in [found for found in messages if isinstance(found, Checkpointed)][-1:]:
            self._keep(newest)

    def _keep(self, made: Checkpointed) -> None:
        try:
            file = self._station.storage.put(made.path)
        except Unavailable as error:  # the job goes on; should it be repeated, it loses more
            log.warning("a checkpoint could not be stored", step=made.step, error=error.detail)
            return
        record = Checkpoint.after(self.checkpoint, file, made.step, self.num_threads)
        self._tenure.write(lambda session: jobs.report_checkpoint(session, self._tenure.claim, record.model_dump()))
        self.checkpoint = record
        outdated, self._kept = self._kept - set(record.digests), set(record.digests)
        self.discard(sorted(outdated))

    def forget(self) -> None:
        """Delete the checkpoints: the job has succeeded, and its row refers to none any more."""
        self.discard(sorted(self._kept))

    def restore(self, folder: Path) -> Path | None:
        """Fetch the checkpoint to resume from, if one can be used; tell what is wrong with the others."""
        if self.checkpoint is None:
            return None
        path, self.checkpoint, complaints = checkpoints.restore(self._station.storage, self.checkpoint, folder)
        for complaint in complaints:
            self.record([Told(event="warning", data={"text": f"{complaint}; an earlier state is used instead"})])
        return path

    def discard(self, digests: Sequence[str]) -> None:
        """Delete stored files that nothing refers to."""
        try:
            contents.release(self._station.database, self._station.storage, digests)
        except (StillhouseError, OSError) as error:
            log.warning("files that nobody needs could not be deleted", digests=digests, error=str(error))


def _write(session: Session, held: Claim, report: Report) -> None:
    match report:
        case StageBegan(name=name, index=index, total=total):
            jobs.report_stage(session, held, name, index, total)
        case Measured(step=step, values=values):
            jobs.report_metrics(session, held, step, values)
        case Told(event=event, data=data):
            jobs.report_event(session, held, event, data)
        case Progressed():
            jobs.report_progress(session, held, report.model_dump(exclude={"kind"}))
