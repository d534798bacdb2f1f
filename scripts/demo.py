"""The main job on real data, from end to end, through HTTP: what `make demo` runs.

    python scripts/demo.py [--folder demo-output] [--epochs 12]

Trains a teacher with scripts/train_teacher.py (once; it is kept), starts `stillhouse serve` as its
own process on a fresh data folder, and is from then on an ordinary client: it uploads, registers,
submits a distillation with its control, watches, downloads, checks every hash, loads the student in
a fresh process without Stillhouse, and compares what it finds there with the report. Every HTTP
request is printed.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from service.client import Client
from service.tables import print_report
from service.terminal import console as terminal
from service.watching import watch

SCRIPTS = Path(__file__).parent
TEACHER = {"name": "resnet20", "options": {"input_shape": [1, 28, 28], "num_classes": 10}}
STUDENT = {"name": "resnet8", "options": {}}
Json = dict[str, Any]
console = terminal()


class Narrated(httpx.HTTPTransport):
    """Sends requests and prints each with its answer; one that repeats the last, and polls, are only counted."""

    def __init__(self) -> None:
        super().__init__()
        self.quiet = False
        self.polls = 0
        self.last = ""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request."""
        started = time.monotonic()
        response = super().handle_request(request)
        line = f"{request.method} {request.url.path} → {response.status_code}"
        if self.quiet or line == self.last:
            self.polls += 1
        else:
            tell(f"{line}, {(time.monotonic() - started) * 1000:.0f} ms")
        self.last = line
        return response


def step(text: str) -> None:
    """Print what comes next."""
    console.print(f"\n[bold]{text}[/bold]", highlight=False)


def tell(text: str) -> None:
    """Print what happened."""
    console.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)


def trained_teacher(folder: Path) -> tuple[Path, Path]:
    """Return the teacher's weights and the digits, made by the script in this repository if need be."""
    weights, digits = folder / "teacher.safetensors", folder / "digits.npz"
    if not (weights.exists() and digits.exists()):
        environ = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}  # threads that wait sleep: other programs run here too
        subprocess.run([sys.executable, str(SCRIPTS / "train_teacher.py"), str(folder)], check=True, env=environ)
    else:
        tell(f"{weights} is there from an earlier run; delete it to train it again")
    return weights, digits


@contextmanager
def serving(data: Path) -> Iterator[tuple[str, str]]:
    """Run `stillhouse serve`; yield its address and its first API key; stop it with Ctrl-C's signal."""
    command = [str(Path(sys.executable).with_name("stillhouse")), "serve", "--data", str(data), "--port", "0"]
    tell("$ " + " ".join(command))
    # A session of its own, so that Ctrl-C reaches this script alone, which then stops the server.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as server:
        try:
            yield address_and_key(server)
        finally:
            server.send_signal(signal.SIGINT)
            assert server.stdout is not None
            for line in server.stdout:
                tell(line.rstrip())
            tell(f"stillhouse serve ended with exit code {server.wait()}")


def address_and_key(server: "subprocess.Popen[str]") -> tuple[str, str]:
    """Read what the server prints until it is ready."""
    said = ""
    assert server.stdout is not None
    for line in server.stdout:
        said += line
        tell(re.sub(r"(sh_.{6}).*", r"\1…", line.rstrip()))
        if ready := re.search(r"ready at (\S+)", line):
            key = re.search(r"sh_\S+", said)
            assert key is not None, "a fresh data folder gets a key"
            return ready[1], key[0]
    raise SystemExit("stillhouse serve ended before it was ready; what it said stands above")


def register(client: Client, transport: Narrated, weights: Path, digits: Path) -> tuple[str, str]:
    """Upload and register both; return the ids of the teacher and the dataset once they are inspected."""
    step("Upload and register the teacher and the digits")
    ids = [
        client.register_model("teacher", {"model.safetensors": weights}, TEACHER)["id"],
        client.register_dataset("digits", {"data.npz": digits})["id"],
    ]
    for resource_id in ids:
        found = client.wait_until_inspected(resource_id)
        tell(f"  (the same again until a worker has read it: {transport.polls} times)")
        transport.polls = 0
        if found["state"] != "ready":
            raise SystemExit(f"{resource_id} was rejected: {found['error']['detail']}")
        tell(f"{resource_id}: {found['name']} is ready")
    return ids[0], ids[1]


def distilled(client: Client, transport: Narrated, teacher: str, dataset: str, epochs: int) -> Json:
    """Submit the job with its control, watch it, and return it when it has succeeded."""
    step(f"Distil it into {STUDENT['name']}, with a control that learns from the labels alone")
    spec = {
        "type": "distill",
        "teacher": teacher,
        "dataset": dataset,
        "seed": 0,
        "student": {"architecture": STUDENT},
        "config": {
            "objective": {"name": "kd", "temperature": 4.0, "alpha": 0.3},
            "training": {
                "epochs": epochs,
                "batch_size": 64,
                "optimizer": {"name": "adamw", "lr": 0.004, "weight_decay": 0.01},
                "schedule": {"name": "cosine", "warmup_epochs": 1},
            },
            "control": True,
        },
    }
    job = client.submit(spec, idempotency_key=f"demo-{os.getpid()}")
    transport.quiet, transport.polls = True, 0
    job = watch(client, job["id"], console)
    transport.quiet = False
    tell(f"({transport.polls} requests while watching: GET /v1/jobs/{job['id']} with Prefer: wait, and its metrics)")
    if job["state"] != "succeeded":
        raise SystemExit(f"the job {job['state']}: {(job['error'] or {}).get('detail', '')}")
    return job


def check_hashes(folder: Path) -> None:
    """Compare every downloaded file with the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, facts in manifest["files"].items():
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if found != facts["sha256"]:
            raise SystemExit(f"{name} has the SHA-256 {found}; the manifest says {facts['sha256']}")
        tell(f"{found[:16]}…  {name} ({facts['size']:,} bytes)")


def check_outside(folder: Path, digits: Path, report: Json) -> None:
    """Let a fresh process use the student without Stillhouse, and compare its accuracy with the report's."""
    command = [sys.executable, "-I", str(SCRIPTS / "use_student.py"), str(folder), str(digits)]
    tell("$ " + " ".join(command))
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    accuracy, reported = found["right"] / found["examples"], report["student"]["accuracy"]["value"]
    tell(f"{found['right']} of {found['examples']} test digits right ({accuracy:.4f}); the report says {reported:.4f}")
    if found["examples"] != report["examples"] or abs(accuracy - reported) > 1.5 / found["examples"]:
        raise SystemExit("the student outside Stillhouse is not the one that the report describes")


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("demo-output"))
    parser.add_argument("--epochs", type=int, default=12)
    given = parser.parse_args()
    folder, started = given.folder.resolve(), time.monotonic()
    data, artifact = folder / "data", folder / "student"
    for old in (data, artifact):
        shutil.rmtree(old, ignore_errors=True)
    step("Train a teacher on 5,000 real handwritten digits (plain PyTorch, no Stillhouse)")
    weights, digits = trained_teacher(folder)
    step("Start Stillhouse: its API, Valkey and workers, with nothing installed beforehand")
    with serving(data) as (url, api_key):
        transport = Narrated()
        with Client(url, api_key, transport=transport) as client:
            job = distilled(client, transport, *register(client, transport, weights, digits), given.epochs)
            report = client.report(job["id"])
            step("Download the student and check its hashes")
            client.download(job["result"]["model_id"], artifact)
            check_hashes(artifact)
            step("Load it in a fresh process, without Stillhouse")
            check_outside(artifact, digits, report)
            step("What it came to")
            print_report(console, report)
        step("Stop Stillhouse")
    tell(f"The student is in {artifact}. All of it took {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; Stillhouse was stopped")
