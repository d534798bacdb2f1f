"""One real `stillhouse serve` for all acceptance tests, and real inputs for it."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn import functional as F

from service.client import Client
from tests.stillhouse_process import StillhouseProcess
from workers.students.architectures import build

ARCHITECTURE = {"name": "mlp", "options": {"input_shape": [1, 8, 8], "num_classes": 10, "hidden": [64]}}
SPLITS = {"validation": 0.1, "test": 0.2, "seed": 0}


@dataclass(frozen=True)
class Stack:
    """A running service: where it is, a key of its first owner, and a client that uses both."""

    url: str
    api_key: str
    client: Client
    data: Path


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    data = tmp_path_factory.mktemp("acceptance") / "data"
    with (
        StillhouseProcess(data, STILLHOUSE_NUM_THREADS="1", STILLHOUSE_SWEEP_SECONDS="1") as serve,
        Client(serve.url, serve.api_key) as client,
    ):
        yield Stack(serve.url, serve.api_key, client, data)


def npz(**arrays: NDArray[np.generic]) -> bytes:
    """Return arrays as the bytes of an .npz file."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes no mapping
    return file.getvalue()


@pytest.fixture(scope="session")
def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """scikit-learn's 1,797 digits: x (1797, 1, 8, 8) in 0…1 and y (1797,)."""
    x, y = load_digits(return_X_y=True)
    return (x.reshape(-1, 1, 8, 8) / 16).astype(np.float32), y.astype(np.int64)


@pytest.fixture(scope="session")
def teacher_file(
    digits: tuple[NDArray[np.float32], NDArray[np.int64]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A perceptron trained on the digits, as a state dict."""
    x, y = (torch.from_numpy(array) for array in digits)
    model = build("mlp", {"hidden": [64]}, input_shape=(1, 8, 8), num_classes=10, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch annotates it in part
        optimizer.step()
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def teacher(stack: Stack, teacher_file: Path) -> str:
    """The id of the registered teacher."""
    made = stack.client.register_model("teacher", {"model.safetensors": teacher_file}, ARCHITECTURE)
    found = stack.client.wait_until_inspected(made["id"], timeout=180)
    assert found["state"] == "ready", found["error"]
    return str(made["id"])


@pytest.fixture(scope="session")
def dataset(
    stack: Stack,
    digits: tuple[NDArray[np.float32], NDArray[np.int64]],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """The id of the registered digits, divided by the service."""
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    path.write_bytes(npz(x=digits[0], y=digits[1]))
    made = stack.client.register_dataset("digits", {"data.npz": path}, splits=SPLITS)
    found = stack.client.wait_until_inspected(made["id"], timeout=180)
    assert found["state"] == "ready", found["error"]
    return str(made["id"])
