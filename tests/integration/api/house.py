"""A whole HTTP side on a SQLite file, local storage and a broker in memory; the test plays the worker."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.api.deps import Services
from service.api.examples import REPORT
from service.app import create_app
from service.contract import jobs, resources
from service.contract.leases import Claim
from service.contract.migrate import migrate
from service.contract.records import JobRecord
from service.contract.settings import Settings
from service.contract.storage import StoredFile
from service.keys import create_key

MODEL_FACTS = {
    "parameters": 77754,
    "macs": 9530000,
    "bytes": 312000,
    "inputs": [{"name": "input", "shape": ["batch", 1, 8, 8], "dtype": "float32"}],
    "outputs": [{"name": "logits", "shape": ["batch", 10], "dtype": "float32"}],
    "format": "safetensors",
    "architecture": {"name": "resnet20", "options": {"input_shape": [1, 8, 8], "num_classes": 10}},
    "units": None,
}
DATASET_FACTS = {
    "splits": {"train": 100, "validation": 20, "test": 30},
    "input_shape": [1, 8, 8],
    "dtype": "uint8",
    "task": "classification",
    "num_classes": 10,
    "class_counts": {"train": [10] * 10},
    "range": [0, 16],
    "labelled": True,
    "scaling": {"factor": 1 / 255},
    "division": {"named": False, "seed": 0, "stratify": True},
    "bytes": 9600,
}


@dataclass
class House:
    """The application, two owners' clients, and a worker to play."""

    app: FastAPI
    services: Services
    keys: dict[str, str]
    ann: TestClient
    bob: TestClient
    claims: dict[str, Claim] = field(default_factory=dict)

    def upload(self, content: bytes = b"weights", client: TestClient | None = None) -> str:
        answer = (client or self.ann).post("/v1/uploads", content=content)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def model(
        self, content: bytes = b"weights", *, ready: bool = True, client: TestClient | None = None, **facts: Any
    ) -> str:
        body = {
            "name": "teacher",
            "files": {"model.safetensors": self.upload(content, client)},
            "architecture": MODEL_FACTS["architecture"],
        }
        return self._registered("models", body, MODEL_FACTS | facts, ready, client)

    def dataset(self, *, ready: bool = True, client: TestClient | None = None, **facts: Any) -> str:
        body = {"name": "digits", "files": {"data.npz": self.upload(b"arrays", client)}}
        return self._registered("datasets", body, DATASET_FACTS | facts, ready, client)

    def _registered(self, kind: str, body: Any, facts: Any, ready: bool, client: TestClient | None) -> str:
        answer = (client or self.ann).post(f"/v1/{kind}", json=body)
        assert answer.status_code == 201, answer.text
        identifier = str(answer.json()["id"])
        if ready:
            self.inspected(identifier, facts)
        return identifier

    def inspected(self, identifier: str, facts: dict[str, Any]) -> None:
        with self.services.database.write() as session:
            claim = resources.claim_inspection(session, identifier, "wrk_test", 30)
            assert claim is not None
            resources.accept(session, claim, facts)
            for job in jobs.jobs_waiting_for(session, identifier):
                jobs.settle_inputs(session, job)

    def request(self, **changes: Any) -> dict[str, Any]:
        """A complete request for a job, with inputs that are ready."""
        body: dict[str, Any] = {"type": "distill", "student": {"architecture": {"name": "resnet8"}}} | changes
        body.setdefault("teacher", None)
        body["teacher"] = body["teacher"] or self.model()
        body["dataset"] = body.get("dataset") or self.dataset()
        return body

    def job(self, **changes: Any) -> str:
        answer = self.ann.post("/v1/jobs", json=self.request(**changes))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def run(self, job_id: str) -> None:
        """Claim a job and let it run."""
        with self.services.database.write() as session:
            claim = jobs.claim(session, job_id, "wrk_test", 30)
            assert claim is not None
            jobs.start(session, claim)
            self.claims[job_id] = claim

    def says(self, job_id: str, *lines: str) -> None:
        with self.services.database.write() as session:
            for line in lines:
                jobs.report_event(session, self.claims[job_id], "log", {"text": line})

    def measured(self, job_id: str, points: dict[int, dict[str, float | None]]) -> None:
        with self.services.database.write() as session:
            for step, values in points.items():
                jobs.report_metrics(session, self.claims[job_id], step, values)

    def succeed(self, job_id: str, **files: bytes) -> str:
        """End a job with a result; `files` are more files of it, `_` in their names for the dot."""
        contents = {"model.safetensors": b"student weights"}
        contents |= {name.replace("_", "."): content for name, content in files.items()}
        with self.services.database.write() as session:
            job = session.get_one(JobRecord, job_id)
            stored: dict[str, StoredFile] = {}
            for name, content in contents.items():
                path = self.services.settings.data_dir / "student"
                path.write_bytes(content)
                stored[name] = self.services.storage.put(path)
            model_id = resources.insert_result(
                session, job, name="student", declaration={}, facts=MODEL_FACTS, files=stored
            )
            jobs.publish(session, self.claims[job_id], model_id, REPORT)
        return model_id


def settings_for(folder: Path, **changes: Any) -> Settings:
    return Settings(
        data_dir=folder, broker_url="memory://", min_free_bytes=0, poll_seconds=0.02, log_level="error", **changes
    )


@contextmanager
def opened(settings: Settings) -> Iterator[House]:
    migrate(settings.database)
    app = create_app(settings)
    services: Services = app.state.services
    with services.database.write() as session:
        keys = {owner: create_key(session, owner, ["read", "submit"]) for owner in ("ann", "bob")}
    with TestClient(app, headers={"Authorization": f"Bearer {keys['ann']}"}) as ann:
        bob = TestClient(app, headers={"Authorization": f"Bearer {keys['bob']}"})
        yield House(app, services, keys, ann, bob)
        bob.close()


@dataclass
class Served:
    """A house behind a real socket."""

    house: House
    port: int
    client: httpx.Client
