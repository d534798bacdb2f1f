"""The Python client: every call of the wire as a method, on objects as the wire shows them.

    with Client("http://127.0.0.1:8000", api_key) as client:
        teacher = client.register_model("teacher", {"model.safetensors": Path("teacher.safetensors")}, architecture)
        digits = client.register_dataset("digits", {"data.npz": Path("digits.npz")})
        job = client.submit({"type": "distill", "teacher": teacher["id"], "dataset": digits["id"], ...})
        job = client.wait(job["id"])
        client.download(job["result"]["model_id"], Path("student"))

All methods raise ProblemError when the service refuses and Unreachable when it does not answer.
"""

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from service import transfers
from service.connection import RETRIES, Connection, Json, Unreachable, pause_before
from service.transfers import Progress, Upload

POLL_SECONDS = 30  # how long the service is asked to hold an answer back until something changes
SETTLED = frozenset({"ready", "rejected"})
Sources = Mapping[str, Path | str]  # a file's role -> a local file, or the id of an upload


class NotInTime(TimeoutError):
    """What was waited for did not happen in the time given."""


class Client:
    """A Stillhouse at `base_url`, used with one API key."""

    def __init__(self, base_url: str, api_key: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self.connection = Connection(base_url, api_key, transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    # Models and datasets

    def upload(self, path: Path, progress: Progress | None = None) -> Upload:
        """Upload a file: streamed, hashed, and continued where a connection was cut."""
        return transfers.upload(self.connection, path, progress)

    def register_model(
        self, name: str, files: Sources, architecture: Mapping[str, Any] | None = None, **fields: Any
    ) -> Json:
        """Upload what is not uploaded yet and make a model of it; a worker then inspects it."""
        body = {"name": name, "files": self._uploaded(files), "architecture": architecture, **fields}
        return self._make("/v1/models", body)

    def register_dataset(self, name: str, files: Sources, **fields: Any) -> Json:
        """Upload what is not uploaded yet and make a dataset of it; `splits`, `transform`, … as on the wire."""
        return self._make("/v1/datasets", {"name": name, "files": self._uploaded(files), **fields})

    def _uploaded(self, files: Sources) -> dict[str, str]:
        return {role: source if isinstance(source, str) else self.upload(source).id for role, source in files.items()}

    def model(self, model_id: str) -> Json:
        """Return a model."""
        return self.connection.json("GET", f"/v1/models/{model_id}")

    def dataset(self, dataset_id: str) -> Json:
        """Return a dataset."""
        return self.connection.json("GET", f"/v1/datasets/{dataset_id}")

    def models(self, **filters: Any) -> Iterator[Json]:
        """Yield all models, newest first; filters: state, label ("key:value"), limit (of a page)."""
        return self._pages("/v1/models", filters)

    def datasets(self, **filters: Any) -> Iterator[Json]:
        """Yield all datasets, newest first."""
        return self._pages("/v1/datasets", filters)

    def wait_until_inspected(self, resource_id: str, timeout: float = 600.0) -> Json:
        """Return a model or dataset once a worker has read it: ready, or rejected with its `error`."""
        get = self.model if resource_id.startswith("mdl_") else self.dataset
        deadline, pause = time.monotonic() + timeout, 0.1
        while (resource := get(resource_id))["state"] not in SETTLED:
            if time.monotonic() > deadline:
                raise NotInTime(f"{resource_id} is still {resource['state']} after {timeout:g} s; is a worker running?")
            time.sleep(pause)
            pause = min(pause * 1.5, 1.0)
        return resource

    def download(self, model_id: str, folder: Path, progress: Progress | None = None) -> dict[str, str]:
        """Bring all files of a model to `folder`; return their SHA-256 by name, compared with the service's."""
        folder.mkdir(parents=True, exist_ok=True)
        files = self.model(model_id)["files"]
        return {
            file["path"]: transfers.download(self.connection, file["url"], folder / Path(file["path"]).name, progress)
            for file in files
        }

    # Jobs

    def submit(self, spec: Mapping[str, Any], idempotency_key: str | None = None) -> Json:
        """Submit a job; sent again with the same key, it stays one job."""
        return self._make("/v1/jobs", spec, idempotency_key)

    def validate(self, spec: Mapping[str, Any]) -> Json:
        """Return what a job would resolve to, without submitting it."""
        return self.connection.json("POST", "/v1/jobs", params={"validate_only": "true"}, json=spec, repeatable=True)

    def job(self, job_id: str) -> Json:
        """Return a job."""
        return self.connection.json("GET", f"/v1/jobs/{job_id}")

    def jobs(self, **filters: Any) -> Iterator[Json]:
        """Yield all jobs, newest first."""
        return self._pages("/v1/jobs", filters)

    def watch(self, job_id: str, timeout: float | None = None) -> Iterator[Json]:
        """Yield the job now and after each change, until it is done (by long polls)."""
        deadline = None if timeout is None else time.monotonic() + timeout
        headers: dict[str, str] = {}
        while True:
            response = self.connection.request("GET", f"/v1/jobs/{job_id}", headers=headers)
            if response.status_code != httpx.codes.NOT_MODIFIED:
                job: Json = response.json()
                yield job
                if job["done"]:
                    return
            left = POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise NotInTime(f"{job_id} is not done after {timeout:g} s")
            seconds = max(1, min(POLL_SECONDS, int(left)))
            headers = {"If-None-Match": response.headers["etag"], "Prefer": f"wait={seconds}"}

    def wait(self, job_id: str, timeout: float | None = None) -> Json:
        """Return the job once it is done. Raises NotInTime."""
        *_, job = self.watch(job_id, timeout)
        return job

    def events(self, job_id: str, after: int = 0) -> Iterator[Json]:
        """Yield the job's events as they happen, from after the given id until the job is done.

        A cut stream is taken up again after the last event, without loss or repetition.
        """
        failures, was_done = 0, False
        while not was_done:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
            was_done = self.job(job_id)["done"]  # the stream that begins after that is the last one needed
            try:
                with self.connection.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
                    for event in server_sent_events(response.iter_lines()):
                        after, failures = int(event["id"]), 0
                        yield event
            except Unreachable:
                failures, was_done = failures + 1, False
                if failures > RETRIES:
                    raise
                time.sleep(pause_before(failures, None))

    def metrics(self, job_id: str, *, after_step: int | None = None, max_points: int | None = None) -> Json:
        """Return the job's series: name -> [[step, value], …]."""
        given = {"after_step": after_step, "max_points": max_points}
        params = {name: value for name, value in given.items() if value is not None}
        body = self.connection.json("GET", f"/v1/jobs/{job_id}/metrics", params=params)
        series: Json = body["series"]
        return series

    def report(self, job_id: str) -> Json:
        """Return the final comparison."""
        return self.connection.json("GET", f"/v1/jobs/{job_id}/report", headers={"Accept": "application/json"})

    def report_page(self, job_id: str) -> str:
        """Return the final comparison as one HTML page that needs nothing else."""
        return self.connection.request("GET", f"/v1/jobs/{job_id}/report", headers={"Accept": "text/html"}).text

    def cancel(self, job_id: str) -> Json:
        """Ask a job to stop."""
        return self.connection.json("POST", f"/v1/jobs/{job_id}/cancel", repeatable=True)

    def pause(self, job_id: str) -> Json:
        """Ask a job to give its worker free; it keeps what it has done."""
        return self.connection.json("POST", f"/v1/jobs/{job_id}/pause", repeatable=True)

    def resume(self, job_id: str) -> Json:
        """Queue a paused job again."""
        return self.connection.json("POST", f"/v1/jobs/{job_id}/resume", repeatable=True)

    def retry(self, job_id: str) -> Json:
        """Queue a failed or cancelled job again."""
        return self.connection.json("POST", f"/v1/jobs/{job_id}/retry")

    def delete(self, resource_id: str) -> None:
        """Delete a model, a dataset, an upload, or a job that is done."""
        kinds = {"mdl": "models", "dat": "datasets", "upl": "uploads", "job": "jobs"}
        self.connection.request("DELETE", f"/v1/{kinds[resource_id[:3]]}/{resource_id}")

    # What they share

    def _make(self, path: str, body: Mapping[str, Any], idempotency_key: str | None = None) -> Json:
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        given = {name: value for name, value in body.items() if value is not None}
        return self.connection.json("POST", path, headers=headers, json=given, repeatable=True)

    def _pages(self, path: str, filters: Mapping[str, Any]) -> Iterator[Json]:
        params = dict(filters)
        while True:
            page = self.connection.json("GET", path, params=params)
            yield from page["items"]
            if (token := page.get("next_page_token")) is None:
                return
            params["page_token"] = token


def server_sent_events(lines: Iterable[str]) -> Iterator[Json]:
    """Parse a stream of server-sent events (WHATWG) whose data are JSON objects, each with an id."""
    fields: dict[str, list[str]] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
            continue
        if "data" in fields:
            data = json.loads("\n".join(fields["data"]))
            yield {"id": fields["id"][-1], "kind": fields.get("event", ["message"])[-1], **data}
        fields = {}
