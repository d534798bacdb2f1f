"""`stillhouse serve` with real processes: what it starts, restarts, refuses, keeps, and leaves behind (nothing)."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

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


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StillhouseProcess]:
    """A stack that several tests share; each leaves it whole."""
    with StillhouseProcess(tmp_path_factory.mktemp("shared") / "data") as serve:
        yield serve


def live(url: str) -> bool:
    with Client(url, "sh_none") as client:
        return client.connection.request("GET", "/livez").status_code == 200


def inspected(client: Client, folder: Path) -> dict[str, Any]:
    """A dataset's record after it went through the API, Valkey and a real worker."""
    (folder / "some.npz").write_bytes(b"not an archive")
    dataset = client.register_dataset("broken", {"data.npz": folder / "some.npz"})
    return client.wait_until_inspected(dataset["id"], timeout=120)


def test_it_starts_the_api_valkey_and_two_workers(running: StillhouseProcess) -> None:
    assert live(running.url)
    assert set(parts(running.data)) == PARTS


def test_a_second_start_on_the_same_folder_is_refused_and_harms_nothing(running: StillhouseProcess) -> None:
    second = refused(running.data)
    assert (second.returncode, second.stdout) == (1, "")
    assert f"is in use by another Stillhouse (process {running.process.pid})" in second.stderr
    assert second.stderr.count("\n") == 1
    assert live(running.url)


@pytest.mark.parametrize("part", sorted(PARTS))
def test_a_part_that_is_killed_is_started_again_and_the_log_says_so(
    running: StillhouseProcess, part: str, tmp_path: Path
) -> None:
    killed, complaints = parts(running.data)[part], running.complained().count("ended (signal SIGKILL)")
    os.kill(killed, signal.SIGKILL)
    until(lambda: parts(running.data).get(part, killed) != killed)
    until(lambda: running.complained().count("ended (signal SIGKILL); starting it again") == complaints + 1)
    with Client(running.url, running.api_key) as client:
        assert inspected(client, tmp_path)["state"] == "rejected"


def refused(data: Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run `stillhouse serve` where it must not become ready."""
    command = [*STILLHOUSE, "serve", "--data", str(data), "--port", "0"]
    said = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in said.stderr
    return said


def test_one_ctrl_c_ends_every_process(data: Path) -> None:
    with StillhouseProcess(data) as serve:
        assert set(parts(data)) == PARTS
        serve.process.send_signal(signal.SIGINT)
        assert serve.process.wait(60) == 0
        assert processes_of(data) == {}
    with Client(serve.url, "sh_none") as client, pytest.raises(Unreachable):
        client.connection.request("GET", "/livez", repeatable=False)


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


def test_sigkill_of_the_parent_leaves_no_orphan_and_frees_the_folder(data: Path) -> None:
    with StillhouseProcess(data) as serve:
        until(lambda: sum("forkserver" in command for command in processes_of(data).values()) == 2)  # the workers' own
        serve.process.kill()
        serve.process.wait()
        until(lambda: processes_of(data) == {}, 20)
    with StillhouseProcess(data) as again:
        assert live(again.url)


def test_the_first_key_is_shown_once_and_data_survive_a_restart(data: Path, tmp_path: Path) -> None:
    with StillhouseProcess(data) as first, Client(first.url, first.api_key) as client:
        found = inspected(client, tmp_path)
    with StillhouseProcess(data) as second, Client(second.url, first.api_key) as client:
        assert "API key" not in second.said()
        assert client.dataset(found["id"]) == found
    stored = b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file())
    assert first.api_key.encode() not in stored


def test_a_data_path_too_long_for_a_socket_works(tmp_path: Path) -> None:
    data = tmp_path / ("long" * 30)
    with StillhouseProcess(data) as serve:
        assert live(serve.url)
        assert "valkey.sock" not in [path.name for path in data.rglob("*")]
    assert processes_of(data) == {}


def test_a_child_that_cannot_start_is_one_message_with_the_end_of_its_log(data: Path) -> None:
    (data / "broker").mkdir(parents=True)
    (data / "broker" / "appendonlydir").write_text("in Valkey's way")
    said = refused(data)
    assert said.returncode == 1
    assert "valkey ended while starting; its log says:" in said.stderr
    assert "appendonlydir" in said.stderr
    assert processes_of(data) == {}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("STILLHOUSE_BROKER_URL", "amqp://nowhere"),
        ("STILLHOUSE_STORAGE_URL", "ftp://nowhere"),
        ("STILLHOUSE_DATABASE_URL", "sqlite://"),
    ],
)
def test_a_url_that_cannot_be_used_is_named_by_its_variable(data: Path, variable: str, value: str) -> None:
    said = refused(data, **{variable: value})
    assert said.returncode == 2
    assert variable in said.stderr


def test_another_broker_is_used_instead_of_a_valkey_of_its_own(data: Path, tmp_path: Path) -> None:
    from service.embedded import valkey_binary

    socket = tmp_path / "other.sock"
    command = [str(valkey_binary()), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as valkey:
        until(socket.exists)
        with StillhouseProcess(data, STILLHOUSE_BROKER_URL=f"redis+socket://{socket}") as serve:
            assert set(parts(data)) == PARTS - {"valkey-server"}
            with Client(serve.url, "sh_none") as client:
                assert client.connection.json("GET", "/readyz")["status"] == "ready"
        valkey.terminate()


def test_the_parent_never_imports_torch() -> None:
    code = "import sys, service.embedded; print('torch' in sys.modules, 'workers' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "False"]
