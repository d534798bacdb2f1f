"""The main job through the real command line, real processes and real HTTP, and what bad input comes to."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.connection import ProblemError
from tests.acceptance.conftest import ARCHITECTURE, Stack, npz
from tests.stillhouse_process import STILLHOUSE

Digits = tuple[NDArray[np.float32], NDArray[np.int64]]
Json = dict[str, Any]
OUTSIDE = """
import json, sys, torch, numpy
model = torch.export.load(sys.argv[1]).module()
with torch.no_grad():
    logits = model(torch.from_numpy(numpy.load(sys.argv[2])))
foreign = [name for name in sys.modules if name.split(".")[0] in {"service", "workers"}]
print(json.dumps({"classes": logits.argmax(1).tolist(), "foreign": foreign}))
"""


def distill(teacher: str, dataset: str, **config: Any) -> Json:
    training = {"epochs": 20, "batch_size": 64, "optimizer": {"name": "adamw", "lr": 0.01}}
    return {
        "type": "distill",
        "teacher": teacher,
        "dataset": dataset,
        "student": {"architecture": {"name": "mlp", "options": {"hidden": [16]}}},
        "config": {"training": training, "control": True, **config},
    }


@pytest.fixture(scope="module")
def done(stack: Stack, teacher: str, dataset: str) -> Json:
    """A distillation with its control, submitted and waited for."""
    job = stack.client.submit(distill(teacher, dataset, objective={"temperature": 3.0, "alpha": 0.5}))
    return stack.client.wait(job["id"], timeout=240)


@pytest.fixture(scope="module")
def student(stack: Stack, done: Json, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the downloaded student."""
    folder = tmp_path_factory.mktemp("student")
    stack.client.download(done["result"]["model_id"], folder)
    return folder


def test_the_job_succeeds_and_says_what_it_made(stack: Stack, done: Json, teacher: str) -> None:
    assert (done["state"], done["error"]) == ("succeeded", None)
    model = stack.client.model(done["result"]["model_id"])
    assert (model["state"], model["lineage"]) == ("ready", {"job_id": done["id"]})
    assert model["parameters"] == 64 * 16 + 16 + 16 * 10 + 10


def test_the_report_compares_teacher_student_and_control_on_the_test_split(
    stack: Stack, done: Json, dataset: str
) -> None:
    report = stack.client.report(done["id"])
    size = stack.client.dataset(dataset)["splits"]["test"]
    assert size == pytest.approx(0.2 * 1797, abs=10)  # each class rounds by itself
    assert (report["job"], report["split"], report["examples"]) == (done["id"], "test", size)
    for model in ("teacher", "student", "control"):
        accuracy = report[model]["accuracy"]
        assert 0.8 < accuracy["value"] <= 1
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert report["teacher"]["macs"] > report["student"]["macs"] == report["control"]["macs"]
    assert (
        0
        < report["comparison"]["kl_teacher_student"]["value"]
        < report["control_comparison"]["kl_teacher_student"]["value"]
    )
    assert 0.8 < report["comparison"]["agreement"]["value"] <= 1


def test_progress_metrics_and_events_tell_of_the_whole_way(stack: Stack, done: Json) -> None:
    series = stack.client.metrics(done["id"])
    assert [step for step, _ in series["validation/accuracy"]] == list(range(1, 21))
    events = list(stack.client.events(done["id"]))
    states = [event["data"]["state"] for event in events if event["kind"] == "state"]
    assert states == ["queued", "preparing", "running", "succeeded"]
    assert [event["id"] for event in events] == sorted(event["id"] for event in events)
    assert list(stack.client.events(done["id"], after=events[-2]["id"])) == events[-1:]


def test_every_file_of_the_student_has_the_hash_that_its_manifest_says(student: Path) -> None:
    files = json.loads((student / "manifest.json").read_text())["files"]
    assert {"model.pt2", "model.safetensors", "report.json", "README.md"} <= set(files)
    for name, facts in files.items():
        assert hashlib.sha256((student / name).read_bytes()).hexdigest() == facts["sha256"]


def test_the_student_runs_outside_with_torch_alone_and_is_as_good_as_reported(
    stack: Stack, done: Json, student: Path, digits: Digits, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", digits[0])
    command = [sys.executable, "-I", "-c", OUTSIDE, str(student / "model.pt2"), str(tmp_path / "x.npy")]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    assert found["foreign"] == []
    on_all = float(np.mean(np.array(found["classes"]) == digits[1]))
    reported = stack.client.report(done["id"])["student"]["accuracy"]
    assert reported["low"] - 0.02 <= on_all  # on all digits, most of which it was trained on


def test_the_same_seed_gives_the_same_student(stack: Stack, done: Json, student: Path, tmp_path: Path) -> None:
    spec = {key: value for key, value in done["spec"].items() if value is not None}
    again = stack.client.wait(stack.client.submit(spec)["id"], timeout=240)
    stack.client.download(again["result"]["model_id"], tmp_path)
    name = "model.safetensors"
    assert (tmp_path / name).read_bytes() == (student / name).read_bytes()


def test_the_command_line_tells_the_same_story(stack: Stack, done: Json, tmp_path: Path) -> None:
    environ = os.environ | {"STILLHOUSE_URL": stack.url, "STILLHOUSE_API_KEY": stack.api_key}

    def stillhouse(*arguments: str) -> str:
        command = [*STILLHOUSE, *arguments]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=120).stdout

    assert done["id"] in stillhouse("jobs")
    report = stillhouse("report", done["id"])
    assert "agreement with the teacher" in report
    assert "control" in report
    pulled = stillhouse("pull", done["id"], "--to", str(tmp_path / "out"))
    digest = hashlib.sha256((tmp_path / "out" / "model.pt2").read_bytes()).hexdigest()
    assert f"{digest}  {tmp_path / 'out' / 'model.pt2'}" in pulled


# Bad input: each is a clear problem, and the service goes on -----------------------------------------


@pytest.fixture(autouse=True)
def _the_service_goes_on(stack: Stack) -> Iterator[None]:
    yield
    assert stack.client.connection.json("GET", "/readyz")["status"] == "ready"


def rejection(stack: Stack, resource: Json) -> str:
    """Why a worker refused a model or dataset."""
    found = stack.client.wait_until_inspected(resource["id"], timeout=120)
    assert found["state"] == "rejected"
    assert found["error"]["title"] == "The file cannot be used"
    return str(found["error"]["detail"])


def dataset_of(stack: Stack, folder: Path, content: bytes, **fields: Any) -> Json:
    (folder / "data.npz").write_bytes(content)
    return stack.client.register_dataset("bad", {"data.npz": folder / "data.npz"}, **fields)


def test_a_truncated_upload_is_refused_and_makes_no_model(stack: Stack) -> None:
    send = stack.client.connection.request
    begun = send("POST", "/v1/uploads", headers={"Upload-Complete": "?0", "Upload-Length": "1000"})
    location = begun.headers["location"]
    headers = {"Content-Type": "application/partial-upload", "Upload-Offset": "0", "Upload-Complete": "?1"}
    with pytest.raises(ProblemError, match="1000") as caught:
        send("PATCH", location, headers=headers, content=b"x" * 400)
    assert caught.value.code == "inconsistent_upload_length"
    with pytest.raises(ProblemError, match="upload"):
        stack.client.register_model("half", {"model.safetensors": location.rsplit("/", 1)[1]}, ARCHITECTURE)


def test_a_connection_cut_in_the_middle_leaves_an_upload_that_goes_on(stack: Stack, teacher_file: Path) -> None:
    content = teacher_file.read_bytes()
    send = stack.client.connection.request
    location = send(
        "POST", "/v1/uploads", headers={"Upload-Complete": "?0", "Upload-Length": str(len(content))}
    ).headers["location"]

    def half() -> Iterator[bytes]:
        yield content[: len(content) // 2]
        time.sleep(1)  # until it has been read: what lies in the server's own buffers at a cut is lost
        raise ConnectionAbortedError

    headers = {"Content-Type": "application/partial-upload", "Upload-Complete": "?1"}
    with (
        httpx.Client(headers={"Authorization": f"Bearer {stack.api_key}"}) as http,
        pytest.raises(ConnectionAbortedError),
    ):
        http.patch(
            stack.url + location, content=half(),
            headers=headers | {"Upload-Offset": "0", "Content-Length": str(len(content))},
        )  # fmt: skip
    deadline = time.monotonic() + 20  # the service notices the cut a moment later
    while not (offset := int(send("HEAD", location).headers["upload-offset"])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert offset == len(content) // 2
    done = send("PATCH", location, headers=headers | {"Upload-Offset": str(offset)}, content=content[offset:]).json()
    assert done["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_wrong_digest_is_refused(stack: Stack) -> None:
    wrong = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"
    with pytest.raises(ProblemError) as caught:
        stack.client.connection.request("POST", "/v1/uploads", headers={"Repr-Digest": wrong}, content=b"weights")
    assert (caught.value.status, caught.value.code) == (422, "digest_mismatch")


class Code:
    """Unpickles as a call of os.system."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_with_code_in_it_is_refused_and_nothing_runs(stack: Stack, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    plain, saved, arrays = tmp_path / "plain.pt", tmp_path / "saved.pt", tmp_path / "arrays.npz"
    plain.write_bytes(pickle.dumps(Code(marker)))
    torch.save({"state_dict": Code(marker)}, saved)
    arrays.write_bytes(npz(x=np.array([Code(marker)], dtype=object), y=np.zeros(1)))
    for checkpoint in (plain, saved):
        assert rejection(stack, stack.client.register_model("evil", {"checkpoint.pt": checkpoint}, ARCHITECTURE))
    assert rejection(stack, stack.client.register_dataset("evil", {"data.npz": arrays}))
    assert not marker.exists()
    pickle.loads(plain.read_bytes())  # the file would have run it
    assert marker.exists()


def test_a_checkpoint_for_another_architecture_is_refused_key_by_key(stack: Stack, teacher_file: Path) -> None:
    other = {"name": "lenet5", "options": {"input_shape": [1, 28, 28], "num_classes": 10}}
    detail = rejection(stack, stack.client.register_model("other", {"model.safetensors": teacher_file}, other))
    assert "fc1.weight" in detail
    assert "conv1.weight" in detail


BAD_ARRAYS: dict[str, tuple[Callable[[Digits], Json], str]] = {
    "NaN inputs": (lambda d: {"x": np.where(d[0] == d[0].max(), np.nan, d[0]), "y": d[1]}, "NaN"),
    "negative labels": (lambda d: {"x": d[0], "y": d[1] - 1}, "-1"),
    "an empty split": (
        lambda d: {"x_train": d[0], "y_train": d[1], "x_test": d[0][:0], "y_test": d[1][:0]},
        "test",
    ),
    "fewer labels than inputs": (lambda d: {"x": d[0], "y": d[1][:-1]}, "1796"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_arrays_that_cannot_be_learned_from_are_refused(
    stack: Stack, digits: Digits, what: str, tmp_path: Path
) -> None:
    make, expected = BAD_ARRAYS[what]
    assert expected in rejection(stack, dataset_of(stack, tmp_path, npz(**make(digits))))


def outcome(stack: Stack, spec: Json) -> str:
    """Why a job that cannot be done was refused, at submission or when a worker saw its inputs."""
    try:
        job = stack.client.wait(stack.client.submit(spec)["id"], timeout=120)
    except ProblemError as problem:
        return problem.detail
    assert job["state"] == "failed"
    return str(job["error"]["detail"])


def test_labels_beyond_the_teachers_classes_end_the_job(
    stack: Stack, teacher: str, digits: Digits, tmp_path: Path
) -> None:
    made = dataset_of(stack, tmp_path, npz(x=digits[0], y=digits[1] + 5))
    assert "classes" in outcome(stack, distill(teacher, made["id"]))


def test_a_dataset_of_another_shape_ends_the_job(stack: Stack, teacher: str, digits: Digits, tmp_path: Path) -> None:
    made = dataset_of(stack, tmp_path, npz(x=np.pad(digits[0], ((0, 0), (0, 0), (0, 1), (0, 1))), y=digits[1]))
    stack.client.wait_until_inspected(made["id"], timeout=120)
    assert "[1, 9, 9]" in outcome(stack, distill(teacher, made["id"]))


@pytest.mark.parametrize(
    ("config", "pointer"),
    [
        ({"objective": {"temperature": 0}}, "/config/objective/temperature"),
        ({"objective": {"temperature": -3}}, "/config/objective/temperature"),
        ({"objective": {"alpha": 1.5}}, "/config/objective/alpha"),
        ({"objective": {"alpha": -0.1}}, "/config/objective/alpha"),
        ({"colour": "blue"}, "/config/colour"),
    ],
)
def test_a_field_that_cannot_be_is_pointed_at(
    stack: Stack, teacher: str, dataset: str, config: Json, pointer: str
) -> None:
    with pytest.raises(ProblemError) as caught:
        stack.client.submit(distill(teacher, dataset, **config))
    assert (caught.value.status, caught.value.code) == (422, "invalid_request")
    assert [where for where, _ in caught.value.errors] == [pointer]


def test_the_same_idempotency_key_makes_one_job_and_another_body_is_refused(
    stack: Stack, teacher: str, dataset: str
) -> None:
    key = str(uuid.uuid4())
    spec = distill(teacher, dataset)
    first = stack.client.submit(spec, key)
    assert stack.client.submit(spec, key) == first
    with pytest.raises(ProblemError) as caught:
        stack.client.submit({**spec, "seed": 7}, key)
    assert caught.value.status == 422
    stack.client.cancel(first["id"])
    assert stack.client.wait(first["id"], timeout=120)["state"] == "cancelled"
