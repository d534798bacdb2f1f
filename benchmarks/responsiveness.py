"""How soon a submitted job runs, and how many polls a second the API answers.

    python -m benchmarks.responsiveness [--jobs 8] [--seconds 6]

Two ratios, each against a baseline of the same run:
- submit-to-running against a fresh process that imports torch, which is what a worker without a
  fork server would pay for every job;
- polls per second of GET /v1/jobs/{id}, in full and as 304, against a bare FastAPI route under the
  same server and client.
"""

import argparse
import io
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import httpx
import numpy as np
from safetensors.torch import save

from benchmarks.stack import Stack, serving
from workers.students.architectures import build

BARE = """
from fastapi import FastAPI
app = FastAPI()
@app.get("/bare")
def bare(): return {"state": "running"}
"""


def register(client: httpx.Client) -> tuple[str, str]:
    options = {"input_shape": [1, 8, 8], "num_classes": 10, "hidden": [16]}
    teacher = build("mlp", {"hidden": [16]}, input_shape=(1, 8, 8), num_classes=10, seed=0)
    rng = np.random.default_rng(0)
    data = io.BytesIO()
    np.savez(data, x=rng.integers(0, 255, (600, 1, 8, 8), dtype=np.uint8), y=np.arange(600) % 10)
    uploads = [
        post(client, "/v1/uploads", content=body)["id"] for body in (save(teacher.state_dict()), data.getvalue())
    ]
    model = {
        "name": "t",
        "files": {"model.safetensors": uploads[0]},
        "architecture": {"name": "mlp", "options": options},
    }
    ids = [post(client, "/v1/models", json=model)["id"]]
    ids.append(post(client, "/v1/datasets", json={"name": "d", "files": {"data.npz": uploads[1]}})["id"])
    for kind, resource_id in zip(("models", "datasets"), ids, strict=True):
        while (resource := client.get(f"/v1/{kind}/{resource_id}").json())["state"] == "inspecting":
            time.sleep(0.2)
        assert resource["state"] == "ready", resource["error"]
    return ids[0], ids[1]


def post(client: httpx.Client, path: str, **content: object) -> dict[str, str]:
    response = client.post(path, **content)  # type: ignore[arg-type]  # passed through
    return dict(response.raise_for_status().json())


def submit_to_running(client: httpx.Client, spec: dict[str, object]) -> tuple[float, str]:
    """Seconds from the submission until the job's record says that it runs, by the server's own events."""
    job = post(client, "/v1/jobs", json=spec)["id"]
    while not client.get(f"/v1/jobs/{job}").json()["done"]:
        time.sleep(0.05)
    events = client.get(f"/v1/jobs/{job}/events", params={"limit": 100}).json()["items"]
    at = {event["data"]["state"]: event["at"] for event in events if event["kind"] == "state"}
    assert "succeeded" in at, client.get(f"/v1/jobs/{job}").json()
    seconds = np.datetime64(at["running"].rstrip("Z")) - np.datetime64(at["queued"].rstrip("Z"))
    return float(seconds / np.timedelta64(1, "ms")) / 1000, job


def torch_import() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - started


def rate(ask: Callable[[], httpx.Response], seconds: float) -> float:
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        assert ask().status_code in {200, 304}
        count += 1
    return count / (time.perf_counter() - started)


def bare_server() -> tuple["subprocess.Popen[bytes]", str]:
    command = [sys.executable, "-c", f"{BARE}\nimport uvicorn; uvicorn.run(app, port=8961, access_log=False)"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while True:
        try:
            httpx.get("http://127.0.0.1:8961/bare")
        except httpx.ConnectError:
            time.sleep(0.1)
        else:
            return process, "http://127.0.0.1:8961"


def polls(stack: Stack, job: str, seconds: float) -> None:
    bare, bare_url = bare_server()
    try:
        with (
            httpx.Client(base_url=stack.url, headers=stack.headers) as ours,
            httpx.Client(base_url=bare_url) as theirs,
        ):
            etag = ours.get(f"/v1/jobs/{job}").headers["ETag"]
            ways: dict[str, Callable[[], httpx.Response]] = {
                "a bare FastAPI route": lambda: theirs.get("/bare"),
                "GET /v1/jobs/{id}": lambda: ours.get(f"/v1/jobs/{job}"),
                "… with If-None-Match": lambda: ours.get(f"/v1/jobs/{job}", headers={"If-None-Match": etag}),
            }
            rates: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(3):  # in alternation, so that a noisy minute hurts all
                for name, ask in ways.items():
                    rates[name].append(rate(ask, seconds / 3))
    finally:
        bare.terminate()
        bare.wait()
    baseline = statistics.median(rates["a bare FastAPI route"])
    for name, values in rates.items():
        median = statistics.median(values)
        print(f"  {name:24} {median:7.0f} a second, {median / baseline:.2f} of the bare route")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=6.0)
    arguments = parser.parse_args()
    with serving() as stack, httpx.Client(base_url=stack.url, headers=stack.headers, timeout=60) as client:
        teacher, dataset = register(client)
        spec: dict[str, object] = {
            "type": "distill", "teacher": teacher, "dataset": dataset,
            "student": {"architecture": {"name": "mlp", "options": {"hidden": [4]}}},
            "config": {"training": {"epochs": 1}},
        }  # fmt: skip
        timed = [submit_to_running(client, spec) for _ in range(arguments.jobs)]
        imports = [torch_import() for _ in range(3)]
        starts, baseline = statistics.median(seconds for seconds, _ in timed), statistics.median(imports)
        print(f"submit to running: median {starts:.3f} s of {arguments.jobs} jobs (one client, idle worker)")
        print(f"  a process that imports torch: {baseline:.2f} s; ratio {starts / baseline:.2f}")
        print("polls, one client on one connection:")
        polls(stack, timed[-1][1], arguments.seconds)


if __name__ == "__main__":
    main()
