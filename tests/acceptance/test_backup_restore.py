"""A service is backed up in the middle of a job, restored elsewhere, and the job ends with the same bytes."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.client import Client
from tests.acceptance.conftest import ARCHITECTURE, SPLITS, npz
from tests.stillhouse_process import STILLHOUSE, StillhouseProcess

ENVIRON = {"STILLHOUSE_NUM_THREADS": "1", "STILLHOUSE_SWEEP_SECONDS": "1", "STILLHOUSE_CHECKPOINT_SECONDS": "0.2"}


def stillhouse(*arguments: object) -> str:
    """Run a command that must succeed; return what it says to people."""
    command = [*STILLHOUSE, *map(str, arguments)]
    environ = os.environ | {"STILLHOUSE_MIN_FREE_BYTES": "0"}
    said = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    return said.stderr


def submitted(client: Client, teacher_file: Path, digits_file: Path) -> str:
    teacher = client.register_model("teacher", {"model.safetensors": teacher_file}, ARCHITECTURE)["id"]
    dataset = client.register_dataset("digits", {"data.npz": digits_file}, splits=SPLITS)["id"]
    training = {"epochs": 150, "batch_size": 256}
    student = {"architecture": {"name": "mlp", "options": {"hidden": [16]}}}
    spec = {"type": "distill", "teacher": teacher, "dataset": dataset, "student": student, "seed": 3}
    return str(client.submit({**spec, "config": {"training": training}})["id"])


def wait_for_checkpoint(client: Client, job_id: str) -> None:
    deadline = time.monotonic() + 120
    while not any(event["kind"] == "checkpoint" for event in client.events(job_id)):
        assert time.monotonic() < deadline, client.job(job_id)
        assert not client.job(job_id)["done"], client.job(job_id)
        time.sleep(0.1)


def weights(client: Client, job_id: str) -> tuple[dict[str, Any], str]:
    """A job that has ended, and the SHA-256 of what it made."""
    job = client.wait(job_id, timeout=180)
    assert job["state"] == "succeeded", job
    files = client.model(job["result"]["model_id"])["files"]
    return job, next(file["sha256"] for file in files if file["path"] == "model.safetensors")


@pytest.mark.slow
def test_a_job_goes_on_in_a_restored_folder_and_makes_the_same_student(
    tmp_path: Path, teacher_file: Path, digits: tuple[NDArray[np.float32], NDArray[np.int64]]
) -> None:
    first, second, archive = tmp_path / "first", tmp_path / "second", tmp_path / "backup.tar"
    (tmp_path / "digits.npz").write_bytes(npz(x=digits[0], y=digits[1]))
    with StillhouseProcess(first, **ENVIRON) as serve, Client(serve.url, serve.api_key) as client:
        job_id, api_key = submitted(client, teacher_file, tmp_path / "digits.npz"), serve.api_key
        wait_for_checkpoint(client, job_id)
        stillhouse("backup", "--data", first, "--to", archive)
        assert not client.job(job_id)["done"]
        stillhouse("doctor", "--data", first, "--deep")  # beside the running service
        _, expected = weights(client, job_id)
    assert "1 of the jobs ran then" in stillhouse("restore", archive, "--data", second)
    stillhouse("doctor", "--data", second, "--deep")
    with StillhouseProcess(second, **ENVIRON) as serve, Client(serve.url, api_key) as client:
        job, made = weights(client, job_id)
        states = [event["data"]["state"] for event in client.events(job_id) if event["kind"] == "state"]
    assert made == expected
    assert (job["attempt"], states) == (
        1,
        ["queued", "preparing", "running", "queued", "preparing", "running", "succeeded"],
    )
