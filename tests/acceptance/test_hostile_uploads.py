"""Hostile files beside honest ones, through HTTP: all are refused, and the service answers all the while."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.client import Client
from tests.acceptance.conftest import ARCHITECTURE, Stack
from tests.unit.formats.hostile_files import FILES, READ, Trap

WORST = (
    *(
        "weights_with_use_pickle",
        "overlapping_records",
        "a_document_of_millions_of_objects",
        "a_graph_of_too_many_nodes",
    ),
    *("checkpoint_with_a_reduce", "pickle_of_millions_of_opcodes", "safetensors_with_400_000_entries"),
    *("object_array", "npz_bomb", "picture of a thousand scans", "parquet_with_one_picture_in_a_million_rows"),
)
ANSWER_SECONDS = 10.0


def posted(client: Client, name: str, path: Path) -> tuple[str, str]:
    """The kind of resource and its id."""
    if FILES[name].kind == "dataset":
        return "dataset", str(client.register_dataset(name, {path.name: path})["id"])
    architecture = None if path.suffix == ".pt2" else ARCHITECTURE
    return "model", str(client.register_model(name, {path.name: path}, architecture)["id"])


@pytest.fixture
def trap(tmp_path: Path) -> Any:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield Trap(tmp_path / "marker", server.getsockname()[1])
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not (tmp_path / "marker").exists()


def test_the_service_answers_beside_hostile_files(
    stack: Stack, teacher_file: Path, teacher: str, tmp_path: Path, trap: Trap
) -> None:
    assert teacher  # the workers are warm
    paths = {}
    for number, name in enumerate(WORST):
        (folder := tmp_path / str(number)).mkdir()
        paths[name] = folder / FILES[name].file
        FILES[name].build(paths[name], trap)

    def post(name: str) -> tuple[str, str]:
        with Client(stack.url, stack.api_key) as client:
            return posted(client, name, paths[name])

    with ThreadPoolExecutor(len(WORST)) as pool:
        waiting = dict(zip(WORST, pool.map(post, WORST), strict=True))
    good = stack.client.register_model("beside", {"model.safetensors": teacher_file}, ARCHITECTURE)["id"]
    slowest, ended = 0.0, {}
    deadline = time.monotonic() + 300
    while (waiting or good not in ended) and time.monotonic() < deadline:
        began = time.monotonic()
        assert stack.client.connection.json("GET", "/readyz")["status"] == "ready"
        slowest = max(slowest, time.monotonic() - began)
        for name, (kind, identity) in list(waiting.items()):
            found = stack.client.model(identity) if kind == "model" else stack.client.dataset(identity)
            if found["state"] not in {"pending", "inspecting"}:
                ended[name] = found
                del waiting[name]
        if (found := stack.client.model(good))["state"] == "ready":
            ended[good] = found
        time.sleep(0.2)
    assert not waiting
    assert ended[good]["state"] == "ready"
    assert slowest < ANSWER_SECONDS
    for name in WORST:
        assert ended[name]["state"] == "rejected", name
        assert ended[name]["error"]["code"] in FILES[name].codes - {READ}, ended[name]["error"]
