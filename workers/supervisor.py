"""One job, from its claim to its end: the only place where a job meets SQL and the storage.

    inputs through the reader -> the child -> its reports, as they come -> one ending

A job is asked to stop for one of the reasons in `Stop`. It then has a grace period for a last
checkpoint, after which it is killed. Whatever happens, the child is dead and the job's folder is
gone when `supervise` returns.
"""

import time
from pathlib import Path

from structlog import get_logger
from structlog.contextvars import bound_contextvars

from service.contract import jobs
from service.contract.errors import DeadlineExceeded, LeaseLost, StillhouseError, Unavailable
from service.contract.leases import Claim
from service.contract.records import JobRecord, JobState
from workers import publication
from workers.child import Child, death
from workers.chronicle import Chronicle
from workers.folders import held_folder
from workers.inputs import read_inputs
from workers.orders import RunOrder
from workers.pipe import Beat, Failed, Finished, LastWord, Reported
from workers.station import Station
from workers.stops import Interrupted, Stop, StopWatch
from workers.tenure import Tenure

LISTEN_SECONDS = 0.2
GRACE_SECONDS = 8.0  # with a look, a stop ends the child within 10 s
log = get_logger(__name__)


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
        self.stops = StopWatch(station, tenure)
        self.chronicle = Chronicle(station, tenure, job)

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

    # Attending -----------------------------------------------------------------------------------

    def _start(self) -> Child:
        inputs = read_inputs(self.station, self.job.id, self.folder / "inputs", self.stops.check)
        work = self.folder / "work"
        work.mkdir()
        resume = self.chronicle.restore(work)
        order = RunOrder.for_attempt(
            self.job, self.station.settings, inputs, work, resume, num_threads=self.chronicle.num_threads
        )
        self.stops.check()
        child = Child("workers.runner:run", order.model_dump_json(), self.held.lease_seconds)
        self.tenure.on_renewed = lambda at: child.send(Beat(at=at))
        child.send(Beat(at=self.tenure.since))  # the first, for which it waits
        return child

    def _attend(self, child: Child) -> None:
        try:
            self.tenure.write(lambda session: jobs.start(session, self.held))
            word, stop = self._listen(child)
        finally:
            self.tenure.on_renewed = lambda _: None
            exit_code = child.end()
        stop = self.stops.wanted() or stop
        log.info("child ended", word=getattr(word, "kind", None), stop=stop, exit_code=exit_code)
        if isinstance(word, Finished):
            self._end_finished(word)
        elif isinstance(word, Reported):
            self._end_reported(word)
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
            messages = child.receive_all(LISTEN_SECONDS)
            self.chronicle.record(messages)
            if messages and isinstance(messages[-1], LastWord):
                return messages[-1], asked
            if child.at_end:
                return None, asked
            stop = self.stops.wanted()
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
            self.chronicle.discard(files)
            self._end_stopped(Stop.CANCEL)  # raises LeaseLost, unless that was the reason
        else:
            log.info("job succeeded", model=model_id)
            self.chronicle.forget()

    def _end_reported(self, word: Reported) -> None:
        """End the job with its report, unless it may not be published any more."""
        try:
            publication.publish_report(self.tenure, word)
        except LeaseLost:
            self._end_stopped(Stop.CANCEL)  # raises LeaseLost, unless that was the reason
        else:
            log.info("job succeeded", model=None)
            self.chronicle.forget()

    def _end_stopped(self, stop: Stop) -> None:
        held, write = self.held, self.tenure.write
        if stop is Stop.LOST:
            raise LeaseLost(f"{held.id}: the lease ran out, or was given to another")
        log.info("job stopped", why=stop)
        if stop in (Stop.CANCEL, Stop.PAUSE):
            write(lambda session: jobs.confirm_stop(session, held))
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
        except LeaseLost:  # perhaps its owner cancelled or paused it in the same moment
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
