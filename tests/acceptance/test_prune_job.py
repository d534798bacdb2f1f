"""Pruning as its users meet it: through HTTP and the command line, with real processes, on real digits.

The network is small enough that a job takes as long as its export and verification. What is slow on purpose (to be
cancelled while its units are judged) is a residual network with untrained weights.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import save_file

from service.client import Client
from service.connection import ProblemError
from tests.acceptance.conftest import SPLITS, Stack, npz
from tests.stillhouse_process import STILLHOUSE, processes_of
from workers.students.architectures import build

Digits = tuple[NDArray[np.float32], NDArray[np.int64]]
Json = dict[str, Any]
T = TypeVar("T")
STAGES = ["loading", "scoring", "removing", "refitting", "recovering", "evaluating", "exporting", "verifying"]
OUTSIDE = """
import json, sys
sys.modules["service"] = sys.modules["workers"] = None  # whoever imports one of them fails
import numpy, torch
model = torch.export.load(sys.argv[1]).module()
with torch.no_grad():
    logits = model(torch.from_numpy(numpy.load(sys.argv[2])))
print(json.dumps({"classes": logits.argmax(1).tolist(), "parameters": sum(p.numel() for p in model.parameters())}))
"""


def pruning(model: str, dataset: str, seed: int = 0, **config: Any) -> Json:
    recovery = {"training": {"epochs": 3, "batch_size": 64}}
    defaults = {"target": {"macs": 0.25}, "recovery": recovery}
    return {"type": "prune", "model": model, "dataset": dataset, "seed": seed, "config": {**defaults, **config}}


def until(look: Callable[[], T], seconds: float = 120.0) -> T:
    """Look until there is something to see, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"nothing was to be seen in {seconds} s"
        time.sleep(0.02)
    return found


def stages_of(client: Client, job_id: str) -> list[str]:
    """The stages that a job went through, in order."""
    return [event["data"]["name"] for event in client.events(job_id) if event["kind"] == "stage"]


def succeeded(stack: Stack, spec: Json) -> Json:
    job = stack.client.wait(stack.client.submit(spec)["id"], timeout=240)
    assert (job["state"], job["error"]) == ("succeeded", None)
    return job


@pytest.fixture(scope="module")
def done(stack: Stack, teacher: str, dataset: str) -> Json:
    """A pruning to a quarter of the MACs, with a short recovery."""
    return succeeded(stack, pruning(teacher, dataset))


@pytest.fixture(scope="module")
def pruned(stack: Stack, done: Json, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the downloaded result."""
    folder = tmp_path_factory.mktemp("pruned")
    stack.client.download(done["result"]["model_id"], folder)
    return folder


@pytest.fixture(scope="module")
def unlabelled(stack: Stack, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of the digits without their labels."""
    path = tmp_path_factory.mktemp("unlabelled") / "digits.npz"
    path.write_bytes(npz(x=digits[0]))
    made = stack.client.register_dataset("unlabelled", {"data.npz": path}, splits=SPLITS)
    assert stack.client.wait_until_inspected(made["id"], timeout=180)["state"] == "ready"
    return str(made["id"])


# Before anything is removed -------------------------------------------------------------------------------------------


def test_the_record_of_a_model_lists_its_units_and_the_floor(stack: Stack, teacher: str) -> None:
    model = stack.client.model(teacher)
    (group,) = model["units"]["groups"]
    assert (group["name"], group["units"], group["macs_per_unit"]) == ("fc1", 64, 64 + 10)
    assert model["units"]["floor"] == {"parameters": 2 * 64 + 2 + 2 * 10 + 10, "macs": 2 * 74, "bytes": 4 * 160}


def test_only_asking_tells_whether_a_target_can_be_reached(stack: Stack, teacher: str, dataset: str) -> None:
    told = stack.client.validate(pruning(teacher, dataset))
    assert (told["valid"], told["reachable"], told["warnings"]) == (True, True, [])
    assert told["floor"]["macs"] == pytest.approx(2 / 64)
    assert any("the network's output" in reason for reason in told["pinned"])
    assert told["resolved"]["config"]["criterion"]["name"] == "output_kl"


def test_a_target_below_the_floor_is_refused_with_the_least_that_can_be_asked_for(
    stack: Stack, teacher: str, dataset: str
) -> None:
    with pytest.raises(ProblemError, match="cannot be reached") as caught:
        stack.client.submit(pruning(teacher, dataset, target={"macs": 0.01}))
    assert caught.value.status == 422
    ((pointer, detail),) = caught.value.errors
    assert pointer == "/config/target/macs"
    least = re.search(r"Ask for ([0-9.]+) or more", detail)
    assert least is not None
    assert stack.client.validate(pruning(teacher, dataset, target={"macs": float(least[1])}))["reachable"]


# The job --------------------------------------------------------------------------------------------------------------


def test_every_stage_is_gone_through_and_those_of_a_step_again_and_again(stack: Stack, done: Json) -> None:
    seen = stages_of(stack.client, done["id"])
    assert set(seen) == set(STAGES)
    assert list(dict.fromkeys(reversed(seen)))[::-1][-4:] == STAGES[-4:]
    steps = len(stack.client.report(done["id"])["pruning"]["steps"])
    assert steps > 5
    assert all(seen.count(name) == steps for name in ("scoring", "removing", "refitting"))


def test_metrics_tell_of_every_step(stack: Stack, done: Json) -> None:
    steps = stack.client.report(done["id"])["pruning"]["steps"]
    series = stack.client.metrics(done["id"])
    for name in ("macs", "kl", "accuracy"):
        assert series[f"pruning/{name}"] == [[step["index"], pytest.approx(step[name])] for step in steps]
    assert [step for step, _ in series["validation/accuracy"]] == [1, 2, 3]


def test_the_report_says_what_went_and_what_each_stage_bought(stack: Stack, done: Json) -> None:
    report = stack.client.report(done["id"])
    assert 0.24 < report["comparison"]["macs_ratio"] <= 0.25
    assert report["student"]["accuracy"]["value"] > report["teacher"]["accuracy"]["value"] - 0.04
    told = report["pruning"]
    assert (told["criterion"], told["stopped_by"], told["split"]) == ("output_kl", "target", "validation")
    (group,) = told["groups"]
    assert (group["units_before"], group["units_after"]) == (64, 16)
    assert told["steps"][0]["groups"]["fc1"]["before"] == 64
    stages = {stage["name"]: stage for stage in report["stages"]}
    for name in ("loading", "removing", "refitting", "recovering"):
        assert stages[name]["kl"] >= 0
        assert 0 <= stages[name]["accuracy"] <= 1
    assert stages["removing"]["kl"] > stages["refitting"]["kl"]


def test_the_result_runs_where_stillhouse_cannot_be_imported(
    stack: Stack, done: Json, pruned: Path, digits: Digits, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", digits[0])
    command = [sys.executable, "-I", "-c", OUTSIDE, str(pruned / "model.pt2"), str(tmp_path / "x.npy")]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120).stdout
    found, report = json.loads(said), stack.client.report(done["id"])
    assert found["parameters"] == report["student"]["parameters"] == 16 * 65 + 17 * 10
    right = float(np.mean(np.array(found["classes"]) == digits[1]))
    assert right > report["student"]["accuracy"]["low"]  # of all digits, most of which it was calibrated on


def test_a_network_on_the_way_becomes_a_model_with_one_call(stack: Stack, done: Json) -> None:
    step = stack.client.report(done["id"])["pruning"]["steps"][2]
    made = stack.client.register_model("half", {"model.pt2": f"{done['result']['model_id']}/{step['file']}"})
    found = stack.client.wait_until_inspected(made["id"], timeout=120)
    assert (found["state"], found["macs"], found["parameters"]) == ("ready", step["macs"], step["parameters"])


def test_the_result_teaches_a_student(stack: Stack, done: Json, dataset: str) -> None:
    spec = {
        "type": "distill",
        "teacher": done["result"]["model_id"],
        "dataset": dataset,
        "student": {"architecture": {"name": "mlp", "options": {"hidden": [4]}}},
        "config": {"training": {"epochs": 1}},
    }
    job = succeeded(stack, spec)
    assert stack.client.report(job["id"])["teacher"]["macs"] == 16 * 74


def test_the_result_is_pruned_again_without_labels_by_the_literal_formula_with_a_warning(
    stack: Stack, done: Json, unlabelled: str
) -> None:
    spec = pruning(
        done["result"]["model_id"],
        unlabelled,
        target={"params": 0.5},
        criterion={"name": "output_entropy"},
        schedule={"name": "one_shot"},
        recovery=None,
    )
    job = succeeded(stack, spec)
    assert any("the best units go first" in warning for warning in job["warnings"])
    told = [event["data"]["text"] for event in stack.client.events(job["id"]) if event["kind"] == "warning"]
    assert any("useful units come out negative" in text for text in told)
    report = stack.client.report(job["id"])
    assert any("useful units come out negative" in note for note in report["pruning"]["steps"][0]["notes"])
    assert report["student"]["accuracy"] is None
    assert report["comparison"]["parameters_ratio"] <= 0.5
    assert stack.client.model(job["result"]["model_id"])["lineage"] == {"job_id": job["id"]}


# Interruptions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Child:
    """The process of a running job."""

    pid: int

    @classmethod
    def of(cls, data: Path) -> "Child | None":
        """The child of the worker's fork server, if it has one now."""
        found = processes_of(data)
        servers = {
            pid for pid, command in found.items() if "forkserver" in command and parent(pid) in jobs_workers(found)
        }
        return next((cls(pid) for pid in found if parent(pid) in servers), None)


def jobs_workers(found: dict[int, str]) -> set[int]:
    return {pid for pid, command in found.items() if "worker -Q jobs" in command}


def parent(pid: int) -> int:
    """The parent's number; 0 where the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def steps_of(client: Client, job_id: str) -> int:
    """How many steps a job has told of."""
    return len(client.metrics(job_id).get("pruning/kl", ()))


def is_past_its_steps(job: Json) -> bool:
    return job["state"] == "running" and job["stage"]["name"] in ("recovering", "exporting", "verifying")


def test_paused_and_killed_on_its_way_a_job_ends_with_the_same_bits(
    stack: Stack, done: Json, pruned: Path, teacher: str, dataset: str, tmp_path: Path
) -> None:
    client = stack.client
    job_id = client.submit(pruning(teacher, dataset))["id"]
    until(lambda: steps_of(client, job_id) >= 2)
    assert client.pause(job_id)["state"] in ("pausing", "paused")
    until(lambda: client.job(job_id)["state"] == "paused")
    assert Child.of(stack.data) is None
    before, attempt = steps_of(client, job_id), client.job(job_id)["attempt"]
    assert client.resume(job_id)["state"] == "queued"
    until(lambda: steps_of(client, job_id) > before or is_past_its_steps(client.job(job_id)))
    child = until(lambda: Child.of(stack.data))
    os.kill(child.pid, signal.SIGKILL)
    until(lambda: client.job(job_id)["attempt"] == attempt + 1)
    job = client.wait(job_id, timeout=240)
    assert (job["state"], job["error"]) == ("succeeded", None)
    reasons = [event["data"].get("reason") for event in client.events(job_id) if event["kind"] == "state"]
    assert any("SIGKILL" in reason for reason in reasons if reason)
    client.download(job["result"]["model_id"], tmp_path)
    names = ["model.safetensors", *(step["file"] for step in client.report(done["id"])["pruning"]["steps"])]
    assert len(names) > 6
    assert [name for name in names if (tmp_path / name).read_bytes() != (pruned / name).read_bytes()] == []


def test_cancelled_while_its_units_are_judged_a_job_frees_its_worker(
    stack: Stack, teacher: str, dataset: str, tmp_path: Path
) -> None:
    client = stack.client
    options = {"input_shape": [1, 8, 8], "num_classes": 10}
    network = build("resnet14", {}, input_shape=(1, 8, 8), num_classes=10, seed=0)
    save_file(network.state_dict(), tmp_path / "slow.safetensors")
    architecture = {"name": "resnet14", "options": options}
    slow = client.register_model("slow", {"model.safetensors": tmp_path / "slow.safetensors"}, architecture)
    exact = {"criterion": {"mode": "exact", "ablation": "zero"}, "calibration": {"examples": 1200}, "recovery": None}
    job_id = client.submit(pruning(slow["id"], dataset, **exact))["id"]
    until(lambda: (client.job(job_id)["stage"] or {}).get("name") == "scoring")
    until(lambda: client.job(job_id)["progress"]["fraction"])
    client.cancel(job_id)
    assert client.wait(job_id, timeout=10)["state"] == "cancelled"
    assert stages_of(client, job_id)[-1] == "scoring"
    following = client.submit(pruning(teacher, dataset))["id"]
    until(lambda: client.job(following)["state"] != "queued", seconds=10)
    client.cancel(following)
    assert client.wait(following, timeout=60)["state"] == "cancelled"


# The command line -----------------------------------------------------------------------------------------------------


def test_the_command_line_prunes_too(stack: Stack, done: Json, teacher: str, dataset: str) -> None:
    environ = os.environ | {"STILLHOUSE_URL": stack.url, "STILLHOUSE_API_KEY": stack.api_key}

    def stillhouse(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*STILLHOUSE, *arguments]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)

    options = ["--model", teacher, "--dataset", dataset]
    told = stillhouse("submit", *options, "--macs", "0.01", "--validate-only")
    assert (told.returncode, json.loads(told.stdout)["reachable"]) == (1, False)
    refused = stillhouse("submit", *options, "--macs", "0.01")
    assert (refused.returncode, "cannot be reached" in refused.stderr) == (1, True)
    assert refused.stderr.count("\n") == 1
    made = stillhouse("submit", *options, "--macs", "0.25", "--criterion", "l2", "--recover", "1").stdout.strip()
    config = stack.client.job(made)["spec"]["config"]
    assert (config["criterion"]["name"], config["recovery"]["training"]["epochs"]) == ("l2", 1)
    assert stillhouse("cancel", made).returncode == 0
    watched = stillhouse("watch", done["id"])
    assert watched.returncode == 0, watched.stderr
    assert f"next: stillhouse report {done['id']}" in watched.stderr
    step = f"{done['result']['model_id']}/step-001.pt2"
    pushed = stillhouse("push", "model", step, "--name", "first step")
    assert pushed.returncode == 0, pushed.stderr
