"""`stillhouse serve` with real processes: what it starts, restarts, refuses, keeps, and leaves behind (nothing)."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from service.client import Client
from service.connection import Unreachable
from tests.stillhouse_process import STILLHOUSE, StillhouseProcess, processes_of

T = TypeVar("T")
PARTS = {"valkey-server", "uvicorn", "worker -Q jobs", "worker -Q inspections"}


def until(look: Callable[[], T], seconds: float = 60.0) -> T:
    """Look until there is something to see, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"{look} saw nothing in {seconds} s"
        time.sleep(0.05)
    return found


def parts(data: Path) -> dict[str, int]:
    """The process of each part that runs for this data folder; a worker's own children are no parts."""
    return {part: pid for pid, command in processes_of(data).items() for part in PARTS if part in command}


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data folder; what a failed test leaves running for it is ended."""
    yield tmp_path / "data"
    for pid in processes_of(tmp_path / "data"):
        os.kill(pid, signal.SIGKILL)


def live(url: str) -> bool:
    with Client(url, "sh_none") as client:
        return client.connection.request("GET", "/livez").status_code == 200


def test_it_starts_all_parts_and_one_ctrl_c_ends_them_all(data: Path) -> None:
    with StillhouseProcess(data) as serve:
        assert live(serve.url)
        assert set(parts(data)) == PARTS
        serve.process.send_signal(signal.SIGINT)
        assert serve.process.wait(60) == 0
        assert processes_of(data) == {}
    with pytest.raises(Unreachable):
        Client(serve.url, "sh_none").connection.request("GET", "/livez", repeatable=False)


def test_sigterm_ends_it_as_ctrl_c_does_and_a_second_signal_hurries(data: Path) -> None:
    with StillhouseProcess(data) as serve:
        for pid in parts(data).values():
            os.kill(pid, signal.SIGSTOP)  # a part that does not hear SIGTERM
        serve.process.send_signal(signal.SIGTERM)
        until(lambda: "Stopping" in serve.said())
        serve.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert serve.process.wait(60) == 0
        assert time.monotonic() - started < 8  # a part that is asked gently gets 10 s at least
        assert processes_of(data) == {}


def test_a_second_start_on_the_same_folder_is_refused_and_harms_nothing(data: Path) -> None:
    with StillhouseProcess(data) as serve:
        second = subprocess.run(
            [*STILLHOUSE, "serve", "--data", str(data), "--port", "0"], capture_output=True, text=True, timeout=60
        )
        assert (second.returncode, second.stdout) == (1, "")
        assert f"is in use by another Stillhouse (process {serve.process.pid})" in second.stderr
        assert second.stderr.count("\n") == 1
        assert live(serve.url)


def test_sigkill_of_the_parent_leaves_no_orphan_and_frees_the_folder(data: Path) -> None:
    with StillhouseProcess(data) as serve:
        group = {pid for pid in processes_of(data) if pid != serve.process.pid}
        assert len(group) >= len(PARTS)
        serve.process.kill()
        serve.process.wait()
        until(lambda: processes_of(data) == {}, 20)
    with StillhouseProcess(data) as again:
        assert live(again.url)


def test_the_first_key_is_shown_once_and_data_survive_a_restart(data: Path, tmp_path: Path) -> None:
    (tmp_path / "some.npz").write_bytes(b"not an archive")
    with StillhouseProcess(data) as first, Client(first.url, first.api_key) as client:
        dataset = client.register_dataset("broken", {"data.npz": tmp_path / "some.npz"})
        found = client.wait_until_inspected(dataset["id"], timeout=120)  # by way of Valkey and a real worker
        assert found["state"] == "rejected"
    with StillhouseProcess(data) as second, Client(second.url, first.api_key) as client:
        assert "API key" not in second.said()
        assert client.dataset(dataset["id"]) == found
    stored = b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file() and path.name != "valkey.sock")
    assert first.api_key.encode() not in stored


@pytest.mark.parametrize("part", sorted(PARTS))
def test_a_part_that_is_killed_is_started_again_and_the_log_says_so(data: Path, part: str, tmp_path: Path) -> None:
    with StillhouseProcess(data) as serve, Client(serve.url, serve.api_key) as client:
        killed = parts(data)[part]
        os.kill(killed, signal.SIGKILL)
        until(lambda: parts(data).get(part, killed) != killed)
        until(lambda: "ended (signal SIGKILL); starting it again" in serve.complained())
        (tmp_path / "some.npz").write_bytes(b"not an archive")
        dataset = client.register_dataset("broken", {"data.npz": tmp_path / "some.npz"})
        assert client.wait_until_inspected(dataset["id"], timeout=120)["state"] == "rejected"


def test_a_data_path_too_long_for_a_socket_works(tmp_path: Path) -> None:
    data = tmp_path / ("long" * 30)
    with StillhouseProcess(data) as serve:
        assert live(serve.url)
        socket = re.search(r"unixsocket:?\s*(\S+valkey\.sock)|(\S+valkey\.sock)", " ".join(processes_of(data).values()))
        assert socket is None or not socket[0].startswith(str(data))
    assert processes_of(data) == {}


def test_a_child_that_cannot_start_is_one_message_with_the_end_of_its_log(data: Path) -> None:
    environ = os.environ | {"STILLHOUSE_BROKER_URL": "nonsense://nowhere"}
    said = subprocess.run(
        [*STILLHOUSE, "serve", "--data", str(data), "--port", "0"],
        env=environ, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert said.returncode == 1
    assert "api ended while starting; its log says:" in said.stderr
    assert "nonsense" in said.stderr
    assert processes_of(data) == {}


def test_another_broker_is_used_instead_of_a_valkey_of_its_own(data: Path, tmp_path: Path) -> None:
    from service.embedded import valkey_binary

    socket = tmp_path / "other.sock"
    command = [str(valkey_binary()), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as valkey:
        until(socket.exists)
        with StillhouseProcess(data, STILLHOUSE_BROKER_URL=f"redis+socket://{socket}") as serve:
            assert set(parts(data)) == PARTS - {"valkey-server"}
            ready = Client(serve.url, "sh_none").connection.json("GET", "/readyz")
            assert ready["status"] == "ready"
        valkey.terminate()


def test_the_parent_never_imports_torch() -> None:
    code = "import sys, service.embedded; print('torch' in sys.modules, 'workers' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "False"]
