"""Schemathesis asks the running service everything that its OpenAPI document allows, and more."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.integration.api.house import opened, settings_for

ROOT = Path(__file__).parents[2]
LEFT_OUT = {
    "positive_data_acceptance": "identifiers that fit the schema name nothing, which is a 422 here",
}


@dataclass(frozen=True)
class Service:
    """A running service with something in it."""

    url: str
    key: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def furnish(folder: Path) -> str:
    """Make a finished and a queued job, and return a key."""
    with opened(settings_for(folder)) as house:
        body = house.request()
        done = house.job(**body)
        house.run(done)
        house.says(done, "epoch 1")
        house.measured(done, {1: {"train/loss": 0.5}})
        house.succeed(done)
        house.job(**body)
        return house.keys["ann"]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    key, port = furnish(tmp_path), free_port()
    settings = {"DATA_DIR": tmp_path, "BROKER_URL": "memory://", "MIN_FREE_BYTES": 0, "MAX_WAIT_SECONDS": 0.2}
    environment = os.environ | {f"STILLHOUSE_{name}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "uvicorn", "--factory", "service.app:application", "--port", str(port)]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_alive(url, process)
            yield Service(url, key)
        finally:
            process.terminate()
            process.wait(20)


def wait_until_alive(url: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        assert process.poll() is None, "the service ended instead of starting"
        try:
            httpx.get(f"{url}/livez").raise_for_status()
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the service did not start within a minute")


@pytest.mark.slow
def test_no_request_meets_a_server_error_or_an_undocumented_answer(service: Service, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json",
        "--header", f"Authorization: Bearer {service.key}", "--exclude-checks", ",".join(LEFT_OUT),
        "--phases", "examples,coverage,fuzzing", "--max-examples", "6", "--seed", "7", "--no-shrink",
        "--continue-on-failure", "--warnings", "off",
    ]  # fmt: skip
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.acceptance.openapi_hooks", "PYTHONPATH": str(ROOT)}
    # Its own folder: it keeps a cache of what it found beside where it runs.
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    document = httpx.get(f"{service.url}/openapi.json").json()
    operations = sum(len(path) for path in document["paths"].values())
    assert re.search(rf"Tested:\s+{operations}\b", run.stdout), run.stdout
    assert httpx.get(f"{service.url}/livez").json() == {"status": "alive"}
