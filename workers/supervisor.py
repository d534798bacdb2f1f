"""One job, from its claim to its end: the only place where a job meets SQL and the storage.

    inputs through the reader -> the child -> its reports, as they come -> one ending

A job is asked to stop for one of the reasons in `Stop`. It then has a grace period for a last
checkpoint, after which it is killed. Whatever happens, the child is dead and the job's folder is
gone when `supervise` returns.
"""

import os
import time
from enum import StrEnum
from pathlib import Path

from sqlalchemy import select
from structlog import get_logger
from structlog.contextvars import bound_contextvars

from service.contract import jobs, resources
from service.contract.database import clock
from service.contract.errors import DeadlineExceeded, LeaseLost, StillhouseError, Unavailable
from service.contract.leases import Claim
from service.contract.records import JobInput, JobRecord, JobState
from workers import checkpoints, publication, reader
from workers.child import Child, death
from workers.folders import held_folder
from workers.lifeline import Lease
from workers.orders import RunOrder
from workers.pipe import (
    Beat,
    Checkpointed,
    Failed,
    Finished,
    LastWord,
    Measured,
    Message,
    Progressed,
    StageBegan,
    Told,
)
from workers.station import Station
from workers.tenure import Tenure

LOOK_SECONDS = 1.0  # how often the job's row is looked at for a request to stop
LISTEN_SECONDS = 0.2
GRACE_SECONDS = 8.0  # with a look, a stop ends the child within 10 s
log = get_logger(__name__)


class Stop(StrEnum):
    """Why a job is to stop."""

    LOST = "lost"  #: another worker may have it
    CANCEL = "cancel"  #: its owner asked
    DEADLINE = "deadline"  #: it took too long
    DRAIN = "drain"  #: this worker is leaving


class Interrupted(Exception):
    """The job is to stop before its child was started."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop)
        self.stop = stop


def supervise(station: Station, held: Claim, job: JobRecord, since: float) -> None:
    """Carry a claimed job to its end. `since` is the monotonic time before the claim was made."""
    heartbeat = station.settings.heartbeat_seconds
    folder = station.settings.jobs_dir.absolute() / f"{held.id}-{held.epoch}"
    with bound_contextvars(job=held.id, attempt=job.attempt, epoch=held.epoch):
        log.info("job claimed", type=job.type)
        try:
            with (
                Tenure(station.database, held, jobs.heartbeat, heartbeat, since) as tenure,
                held_folder(folder),
            ):
                supervision = Supervision(station, tenure, job, folder)
                try:
                    supervision.run()
                except LeaseLost:
                    raise
                except Exception as error:  # the job must not wait for its lease to run out
                    log.exception("a fault of the supervisor")
                    supervision.give_up(f"a fault of the worker ({type(error).__name__})")
        except LeaseLost:
            log.warning("the lease was lost; this worker leaves the job alone")


class Supervision:
    """The state of one supervised job."""

    def __init__(self, station: Station, tenure: Tenure[tuple[JobState, bool]], job: JobRecord, folder: Path) -> None:
        self.station, self.tenure, self.job, self.folder = station, tenure, job, folder
        self.held = tenure.claim
        self.checkpoint = checkpoints.recorded(job.checkpoint)
        self._looked_at = 0.0
        self._seen: Stop | None = None

    def run(self) -> None:
        """Prepare, run, and end the job in the way that it deserves. Raises LeaseLost."""
        try:
            child = self._start()
        except Interrupted as interruption:
            self._end_stopped(interruption.stop)
        except LeaseLost:
            raise
        except Unavailable as error:
            self.give_up(error.detail)
        except StillhouseError as error:
            self._end_failed(Failed(fault=error.fault()))
        else:
            self._attend(child)

    # Why to stop ---------------------------------------------------------------------------------

    def wanted_stop(self) -> Stop | None:
        """Return why the job is to stop now, the strongest reason first."""
        if self.tenure.lost:
            return Stop.LOST
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._look()
            self._looked_at = time.monotonic()
        return self._seen or (Stop.DRAIN if self.station.draining.is_set() else None)

    def _look(self) -> None:
        row = select(JobRecord.state, JobRecord.epoch, JobRecord.deadline_at < clock())
        try:
            with self.station.database.read() as session:
                found = session.execute(row.where(JobRecord.id == self.held.id)).one_or_none()
        except Unavailable:
            return  # the tenure complains, and ends when this lasts
        if found is None or found[1] != self.held.epoch:
            self._seen = Stop.LOST
        elif found[0] == JobState.CANCELLING:
            self._seen = Stop.CANCEL
        elif found[2]:
            self._seen = Stop.DEADLINE

    def check(self) -> None:
        """Raise Interrupted when the job is to stop."""
        if (stop := self.wanted_stop()) is not None:
            raise Interrupted(stop)

    # Preparing -----------------------------------------------------------------------------------

    def _start(self) -> Child:
        inputs = self._read_inputs()
        work = self.folder / "work"
        work.mkdir()
        resume = self._restore(work)
        order = RunOrder(
            job_id=self.job.id,
            attempt=self.job.attempt,
            epoch=self.held.epoch,
            spec=self.job.spec,
            inputs=inputs,
            work_dir=work,
            device=self.station.settings.device,
            num_threads=self.num_threads,
            checkpoint=resume,
            checkpoint_seconds=self.station.settings.checkpoint_seconds,
            log_level=self.station.settings.log_level,
            log_format=self.station.settings.log_format,
        )
        self.check()
        child = Child("workers.runner:run", order.model_dump_json(), Lease(self.tenure.since, self.held.lease_seconds))
        self.tenure.on_renewed = lambda at: child.send(Beat(at=at))
        child.send(Beat(at=self.tenure.since))  # it may have been renewed between the two lines above
        return child

    @property
    def num_threads(self) -> int:
        """The threads of an earlier attempt's checkpoint, if there is one: the same bits need the same threads."""
        if self.checkpoint is not None:
            return self.checkpoint.num_threads
        return self.station.settings.num_threads or os.cpu_count() or 1

    def _read_inputs(self) -> dict[str, Path]:
        with self.station.database.read() as session:
            ids = session.scalars(select(JobInput.resource_id).where(JobInput.job_id == self.job.id)).all()
            found = {key: (resources.find(session, key), resources.files_of(session, key)) for key in ids}
        folders = {}
        for key, (row, files) in found.items():
            if row is None:  # an input of an unfinished job is not deleted
                raise LeaseLost(f"{key} is gone, and so must be the job")
            kind: reader.Kind = "model" if key.startswith("mdl") else "dataset"
            storage, settings = self.station.storage, self.station.settings
            self.check()
            folders[key], _ = reader.canonical(storage, settings, kind, row.declaration, files, check=self.check)
        return folders

    def _restore(self, work: Path) -> Path | None:
        if self.checkpoint is None:
            return None
        path, complaints = checkpoints.restore(self.station.storage, self.checkpoint, work)
        for complaint in complaints:
            text = f"{complaint}; an earlier state is used instead"
            self._record(Told(event="warning", data={"text": text}))
        if path is None:
            self.checkpoint = None
        return path

    # Attending -----------------------------------------------------------------------------------

    def _attend(self, child: Child) -> None:
        try:
            self.tenure.write(lambda session: jobs.start(session, self.held))
            word, stop = self._listen(child)
        finally:
            self.tenure.on_renewed = lambda _: None
            exit_code = child.end()
        stop = self.wanted_stop() or stop
        log.info("child ended", word=getattr(word, "kind", None), stop=stop, exit_code=exit_code)
        if isinstance(word, Finished):
            self._end_finished(word)
        elif stop is not None:
            self._end_stopped(stop)
        elif isinstance(word, Failed):
            self._end_failed(word)
        else:
            self.give_up(death(child, exit_code))

    def _listen(self, child: Child) -> tuple[LastWord | None, Stop | None]:
        """Record what the child tells until its last word, its death, or the end of its grace."""
        asked: Stop | None = None
        kill_at = float("inf")
        while time.monotonic() < kill_at:
            message = child.receive(LISTEN_SECONDS)
            if isinstance(message, LastWord):
                return message, asked
            if message is not None:
                self._record(message)
            elif child.at_end:
                return None, asked
            stop = self.wanted_stop()
            if stop is Stop.LOST:
                raise LeaseLost(f"{self.held.id}: the lease ran out, or was given to another")
            if stop is not None and stop is not asked:
                log.info("asking the child to stop", why=stop)
                child.ask_to_stop()
                kill_at = min(kill_at, time.monotonic() + self._grace(stop))
                asked = stop
        return None, asked

    def _grace(self, stop: Stop) -> float:
        drain = self.station.settings.drain_seconds
        return max(drain - GRACE_SECONDS, drain / 2) if stop is Stop.DRAIN else GRACE_SECONDS

    def _record(self, message: Message) -> None:
        held, write = self.held, self.tenure.write
        match message:
            case StageBegan(name=name, index=index, total=total):
                write(lambda session: jobs.report_stage(session, held, name, index, total))
            case Progressed():
                progress = message.model_dump(exclude={"kind"})
                write(lambda session: jobs.report_progress(session, held, progress))
            case Measured(step=step, values=values):
                write(lambda session: jobs.report_metrics(session, held, step, values))
            case Told(event=event, data=data):
                write(lambda session: jobs.report_event(session, held, event, data))
            case Checkpointed(path=path, step=step):
                self._record_checkpoint(path, step)

    def _record_checkpoint(self, path: Path, step: int) -> None:
        try:
            file = self.station.storage.put(path)
        except Unavailable as error:  # the job goes on; should it be repeated, it loses more
            log.warning("a checkpoint could not be stored", step=step, error=error.detail)
            return
        before = self.checkpoint
        if before is None:
            record = checkpoints.Checkpoint(sha256=file.sha256, size=file.size, step=step, num_threads=self.num_threads)
        else:
            record = before.followed_by(file, step)
        self.tenure.write(lambda session: jobs.report_checkpoint(session, self.held, record.model_dump()))
        self.checkpoint = record
        outdated = set(before.digests if before else []) - set(record.digests)
        self._discard(sorted(outdated))

    def _discard(self, digests: list[str]) -> None:
        try:
            checkpoints.discard(self.station.database, self.station.storage, self.job.id, digests)
        except (StillhouseError, OSError) as error:
            log.warning("files that nobody needs could not be deleted", digests=digests, error=str(error))

    # Endings -------------------------------------------------------------------------------------

    def _end_finished(self, word: Finished) -> None:
        """Publish; a result that may not be published any more is cleared away."""
        files: list[str] = []
        try:
            stored = publication.store(self.tenure, self.station.storage, word.folder)
            files = [file.sha256 for file in stored.values()]
            model_id = publication.publish(self.tenure, self.station.storage, self.job, word, stored)
        except Unavailable as error:
            self.give_up(error.detail)
        except LeaseLost:
            self._discard(files)
            self._end_stopped(Stop.CANCEL)  # raises LeaseLost, unless that was the reason
        else:
            log.info("job succeeded", model=model_id)
            self._discard(self.checkpoint.digests if self.checkpoint else [])

    def _end_stopped(self, stop: Stop) -> None:
        held, write = self.held, self.tenure.write
        if stop is Stop.LOST:
            raise LeaseLost(f"{held.id}: the lease ran out, or was given to another")
        log.info("job stopped", why=stop)
        if stop is Stop.CANCEL:
            write(lambda session: jobs.confirm_cancel(session, held))
        elif stop is Stop.DEADLINE:
            fault = DeadlineExceeded(
                "the deadline passed while the job ran; submit it again with a larger deadline_seconds"
            ).fault()
            write(lambda session: jobs.fail(session, held, fault))
        else:
            self._hand_back()

    def _hand_back(self) -> None:
        try:
            self.tenure.write(lambda session: jobs.hand_back(session, self.held, "its worker is shutting down"))
        except LeaseLost:  # perhaps its owner cancelled it in the same moment
            self._end_stopped(Stop.CANCEL)
        else:
            self.station.ring("jobs", self.held.id)

    def _end_failed(self, word: Failed) -> None:
        log.info("job failed", code=word.fault.code, detail=word.fault.detail)
        self.tenure.write(lambda session: jobs.fail(session, self.held, word.fault))

    def give_up(self, reason: str) -> None:
        log.warning("job given up", reason=reason)
        tries = self.station.settings.max_attempts
        self.tenure.write(lambda session: jobs.give_up(session, self.held, reason, tries))
        self.station.ring("jobs", self.held.id)
