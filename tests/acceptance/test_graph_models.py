"""Networks that come as archives of torch.export, of classes that the service never sees, and leave runnable."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from service.connection import ProblemError
from tests.acceptance.conftest import Stack
from tests.stillhouse_process import STILLHOUSE
from tests.unit.formats.pt2_forgery import WEIGHTS, Bomb, forge, forge_program, records

Digits = tuple[NDArray[np.float32], NDArray[np.int64]]
Json = dict[str, Any]
OUTSIDE = """
import json, sys, numpy, torch, onnxruntime
x = numpy.load(sys.argv[2])
model = torch.export.load(sys.argv[1] + "/model.pt2").module()
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx")
with torch.no_grad():
    logits = model(torch.from_numpy(x)).numpy()
    alone = model(torch.from_numpy(x[:1])).numpy()
(from_onnx,) = session.run(["logits"], {"input": x})
(alone_from_onnx,) = session.run(None, {"input": x[:1]})
print(json.dumps({
    "foreign": [name for name in sys.modules if name.split(".")[0] in {"service", "workers", "tests"}],
    "classes": logits.argmax(1).tolist(),
    "shape": list(logits.shape),
    "difference": float(abs(logits - from_onnx).max()),
    "alone": float(max(abs(logits[:1] - alone).max(), abs(alone - alone_from_onnx).max())),
}))
"""


class Block(nn.Module):
    """Two convolutions with batch norms around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class Residual(nn.Module):
    """A residual network of one block for pictures of 8 x 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(1, width, 3, padding=1), Block(width)
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(width * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.block(F.relu(self.stem(x))), 2)
        logits: Tensor = self.head(self.dropout(y.flatten(1)))
        return logits


class Tokens(nn.Module):
    """Four rows of a picture as tokens beside one that is learned: a parameter of no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.embed = nn.Parameter(torch.zeros(1, 1, 16)), nn.Linear(16, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.embed(x.reshape(-1, 4, 16))
        y = torch.cat([self.token.expand(rows.shape[0], -1, -1), rows], 1)
        y = y + F.scaled_dot_product_attention(y, y, y)
        logits: Tensor = self.head(self.norm(y.mean(1)))
        return logits


def export(model: nn.Module, path: Path, batch: int = 2, *, dynamic: bool = True) -> Path:
    shapes = ({0: Dim("batch")},) if dynamic else None
    torch.export.save(torch.export.export(model.eval(), (torch.zeros(batch, 1, 8, 8),), dynamic_shapes=shapes), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def teacher_network(digits: Digits) -> nn.Module:
    """A residual network that has learned the digits."""
    torch.manual_seed(0)
    x, y = (torch.from_numpy(array) for array in digits)
    model = Residual(12)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(60):
        rows = torch.arange(step * 128, step * 128 + 128) % len(x)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]  # torch annotates it in part
        optimizer.step()
    return model.eval()


def registered(stack: Stack, name: str, path: Path) -> str:
    made = stack.client.register_model(name, {"model.pt2": path})
    found = stack.client.wait_until_inspected(made["id"], timeout=180)
    assert found["state"] == "ready", found["error"]
    return str(made["id"])


@pytest.fixture(scope="module")
def graph_teacher(stack: Stack, teacher_network: nn.Module, folder: Path) -> str:
    return registered(stack, "residual teacher", export(teacher_network, folder / "teacher.pt2"))


@pytest.fixture(scope="module")
def graph_student(stack: Stack, folder: Path) -> str:
    torch.manual_seed(1)
    return registered(stack, "residual student", export(Residual(4), folder / "student.pt2"))


def distill(stack: Stack, teacher: str, dataset: str, student: Json, epochs: int = 2) -> Json:
    training = {"epochs": epochs, "batch_size": 64, "optimizer": {"name": "adamw", "lr": 0.01}}
    spec = {"type": "distill", "teacher": teacher, "dataset": dataset, "student": student}
    done = stack.client.wait(stack.client.submit({**spec, "config": {"training": training}})["id"], timeout=300)
    assert (done["state"], done["error"]) == ("succeeded", None)
    return done


def run_outside(stack: Stack, done: Json, folder: Path, x: NDArray[np.float32]) -> Json:
    """What plain PyTorch and ONNX Runtime compute with the downloaded files."""
    stack.client.download(done["result"]["model_id"], folder)
    np.save(folder / "x.npy", x)
    command = [sys.executable, "-I", "-c", OUTSIDE, str(folder), str(folder / "x.npy")]
    found: Json = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    return found


@pytest.fixture(scope="module")
def to_graph(stack: Stack, graph_teacher: str, graph_student: str, dataset: str) -> Json:
    """A distillation of one graph into another, which keeps its weights to begin with."""
    return distill(stack, graph_teacher, dataset, {"model": graph_student})


def test_an_exported_network_is_a_model_without_an_architecture(
    stack: Stack, graph_teacher: str, teacher_network: nn.Module
) -> None:
    model = stack.client.model(graph_teacher)
    assert (model["state"], model["format"], model["architecture"]) == ("ready", "pt2", None)
    assert model["parameters"] == sum(weight.numel() for weight in teacher_network.parameters())
    assert model["inputs"] == [{"name": "x", "shape": ["batch", 1, 8, 8], "dtype": "float32"}]
    assert model["outputs"] == [{"name": "logits", "shape": ["batch", 10], "dtype": "float32"}]
    units = model["units"]
    assert [(group["name"], group["units"]) for group in units["groups"]] == [("stem", 12), ("block.conv1", 12)]
    assert units["floor"]["parameters"] < model["parameters"]
    assert "the network's output" in {pin["reason"] for pin in units["pinned"]}


def test_a_list_of_models_leaves_their_groups_out(stack: Stack, graph_teacher: str) -> None:
    (listed,) = [model for model in stack.client.models() if model["id"] == graph_teacher]
    whole = stack.client.model(graph_teacher)["units"]
    assert listed["units"] == {
        "groups": [], "groups_left_out": 2, "pinned": [], "pinned_left_out": len(whole["pinned"]),
        "floor": whole["floor"],
    }  # fmt: skip


def test_a_graph_teaches_a_built_in_student_that_takes_its_shapes(
    stack: Stack, graph_teacher: str, dataset: str, digits: Digits, tmp_path: Path
) -> None:
    student = {"architecture": {"name": "mlp", "options": {"hidden": [32]}}}
    done = distill(stack, graph_teacher, dataset, student, epochs=10)
    options = done["spec"]["student"]["architecture"]["options"]
    assert (options["input_shape"], options["num_classes"]) == ([1, 8, 8], 10)
    report = stack.client.report(done["id"])
    assert report["teacher"]["accuracy"]["value"] > 0.9
    assert report["comparison"]["agreement"]["value"] > 0.7
    found = run_outside(stack, done, tmp_path, digits[0][:200])
    assert found["foreign"] == []
    assert max(found["difference"], found["alone"]) < 1e-4
    assert np.mean(np.array(found["classes"]) == digits[1][:200]) > 0.7


def test_a_graph_learns_from_a_graph_and_leaves_as_pt2_and_onnx(
    stack: Stack, to_graph: Json, digits: Digits, tmp_path: Path
) -> None:
    model = stack.client.model(to_graph["result"]["model_id"])
    assert (model["format"], model["architecture"]) == ("pt2", None)
    assert model["parameters"] == sum(weight.numel() for weight in Residual(4).parameters())
    assert [(group["name"], group["units"]) for group in model["units"]["groups"]] == [("stem", 4), ("block.conv1", 4)]
    found = run_outside(stack, to_graph, tmp_path, digits[0][:300])
    assert (found["foreign"], found["shape"]) == ([], [300, 10])
    assert max(found["difference"], found["alone"]) < 1e-4
    assert np.mean(np.array(found["classes"]) == digits[1][:300]) > 0.5
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["onnx"]["file"] == "model.onnx"
    verified = {file["file"]: file for file in manifest["verification"]}
    assert verified["model.onnx"]["max_abs_difference"] <= verified["model.onnx"]["tolerance"]
    assert stack.client.report(to_graph["id"])["verification"] == manifest["verification"]


def test_the_trained_weights_have_the_names_of_the_class_that_stayed_at_home(
    stack: Stack, to_graph: Json, digits: Digits, tmp_path: Path
) -> None:
    stack.client.download(to_graph["result"]["model_id"], tmp_path)
    own = Residual(4)
    own.load_state_dict(load_file(tmp_path / "model.safetensors"))
    exported = torch.export.load(tmp_path / "model.pt2").module()
    x = torch.from_numpy(digits[0][:50])
    with torch.no_grad():
        torch.testing.assert_close(own.eval()(x), exported(x), rtol=1e-4, atol=1e-4)


def test_nothing_that_leaves_names_a_place_of_the_server(stack: Stack, to_graph: Json, tmp_path: Path) -> None:
    stack.client.download(to_graph["result"]["model_id"], tmp_path)
    private = {str(Path.cwd()), sys.prefix, str(stack.data), "site-packages", "stack_trace"}
    for path in tmp_path.iterdir():
        assert not [place for place in private if place.encode() in path.read_bytes()], path.name


def test_what_a_job_made_of_a_graph_teaches_and_is_reset_like_any_model(
    stack: Stack, to_graph: Json, graph_student: str, dataset: str
) -> None:
    made = to_graph["result"]["model_id"]
    again = distill(stack, made, dataset, {"model": graph_student, "reset": True}, epochs=1)
    from_result = distill(stack, made, dataset, {"model": made, "reset": True}, epochs=1)
    digests = [
        next(file["sha256"] for file in stack.client.model(done["result"]["model_id"])["files"] if wanted(file))
        for done in (again, from_result)
    ]
    assert digests[0] == digests[1]  # the same graph with the same seed's weights, whichever it had before


def wanted(file: Json) -> bool:
    return bool(file["path"] == "model.safetensors")


def test_a_reset_that_no_layer_could_draw_fails_by_the_parameters_name(
    stack: Stack, graph_teacher: str, dataset: str, folder: Path
) -> None:
    tokens = registered(stack, "tokens", export(Tokens(), folder / "tokens.pt2"))
    student = {"model": tokens, "reset": True}
    spec = {"type": "distill", "teacher": graph_teacher, "dataset": dataset, "student": student}
    done = stack.client.wait(stack.client.submit(spec)["id"], timeout=120)
    assert done["state"] == "failed"
    assert "token belong to no layer" in done["error"]["detail"]
    assert done["error"]["errors"][0]["pointer"] == "/student/reset"


def test_the_command_line_pushes_an_archive_by_itself(stack: Stack, folder: Path, graph_teacher: str) -> None:
    assert graph_teacher  # its file is there
    environ = os.environ | {"STILLHOUSE_URL": stack.url, "STILLHOUSE_API_KEY": stack.api_key}
    command = [*STILLHOUSE, "push", "model", str(folder / "teacher.pt2"), "--name", "pushed"]
    pushed = subprocess.run(
        command, env=environ, capture_output=True, text=True, check=True, timeout=120
    ).stdout.strip()
    assert stack.client.model(pushed)["format"] == "pt2"


# Refused, and the service goes on --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _the_service_goes_on(stack: Stack) -> Iterator[None]:
    yield
    assert stack.client.connection.json("GET", "/readyz")["status"] == "ready"


def rejection(stack: Stack, path: Path) -> Json:
    """Why a worker refused an archive."""
    made = stack.client.register_model("bad", {"model.pt2": path})
    found = stack.client.wait_until_inspected(made["id"], timeout=120)
    assert found["state"] == "rejected"
    error: Json = found["error"]
    return error


def test_an_archive_with_pickled_weights_is_refused_and_nothing_runs(
    stack: Stack, graph_teacher: str, folder: Path, tmp_path: Path
) -> None:
    assert graph_teacher
    marker = tmp_path / "ran"
    config = json.loads(records(folder / "teacher.pt2")[WEIGHTS])
    config["config"]["head.bias"]["use_pickle"] = True
    place = f"data/weights/{config['config']['head.bias']['path_name']}"
    changes = {WEIGHTS: json.dumps(config).encode(), place: pickle.dumps(Bomb(marker))}
    error = rejection(stack, forge(folder / "teacher.pt2", tmp_path / "evil.pt2", changes))
    assert error["code"] == "pickle_refused"
    assert "head.bias" in error["detail"]
    assert not marker.exists()


def test_an_archive_with_an_unknown_operator_is_refused_by_its_name(
    stack: Stack, graph_teacher: str, folder: Path, tmp_path: Path
) -> None:
    assert graph_teacher

    def change(document: Json) -> None:
        document["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"

    error = rejection(stack, forge_program(folder / "teacher.pt2", tmp_path / "evil.pt2", change))
    assert error["code"] == "operator_refused"
    assert "torch.ops.aten.from_file.default" in error["detail"]


def test_a_baked_batch_is_refused_with_the_way_out(stack: Stack, tmp_path: Path) -> None:
    error = rejection(stack, export(Residual(4), tmp_path / "one.pt2", batch=1, dynamic=False))
    assert error["code"] == "batch_baked"
    assert "dynamic dimension 0" in error["detail"]


def test_an_archive_with_an_architecture_beside_it_is_not_registered(stack: Stack, tmp_path: Path) -> None:
    path = export(Residual(4), tmp_path / "model.pt2")
    with pytest.raises(ProblemError) as caught:
        stack.client.register_model("both", {"model.pt2": path}, {"name": "resnet8", "options": {}})
    assert [pointer for pointer, _ in caught.value.errors] == ["/architecture"]
