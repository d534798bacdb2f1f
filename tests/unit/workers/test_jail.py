"""What a jailed process can and cannot do, layer by layer: the prisoner tries, and tells."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.permissions import open_to_all
from tests.reference.bpf import verdict
from tests.unit.workers import prisoner
from workers.jail import jail, kernel, landlock, seccomp, syscalls
from workers.jail.environment import without_secrets
from workers.limits import Limits

ROOT = Path(__file__).parents[3]
NOBODY = "65534"
HAS_LANDLOCK = landlock.offer()[0] >= 6
HAS_SECCOMP = seccomp.offered(kernel.architecture())
DENIED = {"EACCES", "EPERM"}
BY_LANDLOCK = {  # what it takes away without help
    *("read a file outside", "read the users' list", "read through a link in the input"),
    *("read a file of a pickle's choice", "list a folder outside", "read the parent's environment"),
    *("read the parent's memory", "reach a file through the parent's root", "write a file outside"),
    *("make a file outside", "make a file in the system's scratch folder", "change its input", "remove its input"),
    *("cut its input", "move its input", "write its own code", "make a symbolic link"),
    *("make a pipe with a name", "dial by TCP", "listen by TCP", "run a program", "signal the parent"),
    *("signal a thread of the parent", "trace the parent"),
}
BY_SECCOMP = {  # what it takes away without help
    *("make a symbolic link", "make a hard link to a file outside", "make a pipe with a name"),
    *("change a file's mode", "change a file's owner", "change a file's times", "dial by TCP", "listen by TCP"),
    *("send by UDP", "open a Unix socket", "run a program", "run a shell", "fork", "clone a process"),
    *("clone into a new user namespace", "signal the parent", "signal a thread of the parent", "signal everybody"),
    *("signal by way of a pipe", "trace the parent", "read the parent's memory by a call"),
    *("type into the terminal", "limit the parent", "set a limit", "become inspectable again", "outlive its parent"),
}
ALWAYS = {"write to a descriptor that was left open"}
ATTEMPTS = list(prisoner.attempts(Path()))


def imprison(folder: Path, layers: str = "all", user: str = "same") -> dict[str, Any]:
    (folder / "in").mkdir(parents=True)
    (folder / "out").mkdir()
    (folder / "scratch").mkdir()
    (folder / "in" / "file").write_text("given")
    (folder / "secret").write_text("secret")
    (folder / "in" / "link").symlink_to(folder / "secret")
    if user != "same":
        for path in (folder, *folder.rglob("*")):
            os.chown(path, int(user), int(user), follow_symlinks=False)
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.workers.prisoner", str(folder), layers, user],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    if layers != "seccomp":
        assert (folder / "secret").read_text() == "secret"
        assert (folder / "in" / "file").read_text() == "given"
    return told


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By a prisoner behind all layers."""
    if not (HAS_LANDLOCK and HAS_SECCOMP):
        pytest.skip("this kernel offers no Landlock with signals, or no seccomp")
    return imprison(tmp_path_factory.mktemp("all"))


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_the_jail_refuses_to(told: dict[str, Any], attempt: str) -> None:
    expected = {"EBADF"} if attempt in ALWAYS else DENIED
    assert told["attempts"][attempt] in expected


def test_every_attempt_is_refused_by_a_layer_that_is_named() -> None:
    assert set(ATTEMPTS) == BY_LANDLOCK | BY_SECCOMP | ALWAYS


def test_the_prisoner_goes_on_with_honest_work(told: dict[str, Any]) -> None:
    assert set(told["honest"].values()) == {"done"}, told["honest"]


def test_every_system_call_that_is_not_listed_is_refused(told: dict[str, Any]) -> None:
    clone3 = syscalls.NOT_IMPLEMENTED["clone3"][0]
    assert set(told["sweep"]) == {"EPERM", "ENOSYS"}
    assert told["sweep"]["ENOSYS"] == [clone3], "libc shall fall back to clone, whose flags can be judged"
    assert len(told["sweep"]["EPERM"]) > prisoner.HIGHEST + 800


def test_calls_that_would_lead_out_are_refused_by_name(told: dict[str, Any]) -> None:
    assert {name: end for name, end in told["named"].items() if end != "EPERM"} == {}
    assert not set(prisoner.FORBIDDEN) & {*syscalls.ALLOWED, *syscalls.conditional()}


def test_the_kernel_says_that_rights_are_gone(told: dict[str, Any]) -> None:
    fields = dict(line.split(":\t", 1) for line in told["status"].splitlines() if ":\t" in line)
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapInh"], 16) == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_user_without_privileges_can_enter_the_same_jail(told: dict[str, Any], tmp_path: Path) -> None:
    open_to_all(tmp_path)
    theirs = imprison(tmp_path / "theirs", user=NOBODY)
    assert theirs["attempts"] == told["attempts"]
    assert theirs["sweep"] == told["sweep"]
    assert theirs["honest"]["make, change and remove files in its output"] == "done"


@pytest.mark.skipif(not HAS_LANDLOCK, reason="this kernel has no Landlock that knows signals")
def test_without_a_filter_landlock_still_keeps_files_tcp_and_signals(tmp_path: Path) -> None:
    alone = imprison(tmp_path / "cell", "landlock")
    assert {name for name, end in alone["attempts"].items() if end in DENIED} >= BY_LANDLOCK
    assert alone["attempts"]["fork"] == "done", "this is the filter's part, or the layers are not told apart"
    assert set(alone["honest"].values()) == {"done"}


@pytest.mark.skipif(not HAS_SECCOMP, reason="this kernel has no seccomp")
def test_without_landlock_the_filter_still_keeps_network_programs_and_signals(tmp_path: Path) -> None:
    alone = imprison(tmp_path / "cell", "seccomp")
    assert {name for name, end in alone["attempts"].items() if end in DENIED} >= BY_SECCOMP
    assert alone["attempts"]["read a file of a pickle's choice"] == "done", "this is Landlock's part"
    assert set(alone["honest"].values()) == {"done"}


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_the_filter_says_of_each_call_what_the_tables_say(architecture: str) -> None:
    conditional = syscalls.conditional()
    code = seccomp.assemble(seccomp.program(architecture, conditional))
    column, mine = seccomp.COLUMN[architecture], seccomp.AUDIT_ARCH[architecture]
    allowed = {numbers[column] for numbers in syscalls.ALLOWED.values()}
    judged = {call.numbers[column] for call in conditional.values()}
    for number in set(range(prisoner.HIGHEST)) - judged:
        expected = seccomp.ALLOW if number in allowed else seccomp.REFUSE
        expected = seccomp.UNKNOWN if number == 435 else expected
        assert verdict(code, number, mine) == expected
        assert verdict(code, number | prisoner.X32, mine) == seccomp.REFUSE
        assert verdict(code, number, 0x40000003) == seccomp.REFUSE, "32-bit calls"
    for numbers in prisoner.FORBIDDEN.values():
        if (forbidden := numbers[column]) is not None:
            assert verdict(code, forbidden, mine) == seccomp.REFUSE


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
@pytest.mark.parametrize(
    ("name", "arguments", "allowed"),
    [
        ("clone", [0x3D0F00], True),  # as pthread_create does it
        ("clone", [0x3D0F00 | 0x40000000], False),  # a thread in a new network namespace
        ("clone", [17], False),
        ("clone", [0x4111], False),  # vfork
        ("kill", [os.getpid(), 9], True),
        ("kill", [-os.getpid(), 9], True),
        ("kill", [os.getpid() + 1, 9], False),
        ("kill", [0, 9], False),
        ("kill", [-1, 9], False),
        ("tgkill", [os.getpid(), 5, 6], True),
        ("tgkill", [os.getppid(), 5, 6], False),
        ("prctl", [15], True),
        ("prctl", [4, 1], False),
        ("prlimit64", [0, 7, 0, 4096], True),
        ("prlimit64", [0, 7, 4096, 0], False),
        ("prlimit64", [0, 7, 1 << 32, 0], False),
        ("prlimit64", [os.getppid(), 7, 0, 4096], False),
        ("fcntl", [3, 1030], True),
        ("fcntl", [3, 8], False),  # F_SETOWN
        ("fcntl", [3, 10], False),  # F_SETSIG
        ("ioctl", [0, 0x5401], True),
        ("ioctl", [0, 0x5412], False),  # TIOCSTI
        ("ioctl", [0, 0x541C], False),  # TIOCLINUX
    ],
)
def test_some_calls_depend_on_their_arguments(
    architecture: str, name: str, arguments: list[int], allowed: bool
) -> None:
    conditional = syscalls.conditional()
    code = seccomp.assemble(seccomp.program(architecture, conditional))
    number = conditional[name].numbers[seccomp.COLUMN[architecture]]
    assert number is not None
    expected = seccomp.ALLOW if allowed else seccomp.REFUSE
    assert verdict(code, number, seccomp.AUDIT_ARCH[architecture], arguments) == expected


def test_no_call_is_listed_twice() -> None:
    tables = [*syscalls.ALLOWED.values(), *(call.numbers for call in syscalls.conditional().values())]
    for column in (0, 1):
        numbers = [entry[column] for entry in tables if entry[column] is not None]
        assert len(numbers) == len(set(numbers))


def test_the_pickle_of_these_tests_reads_the_file_where_nothing_holds_it() -> None:
    found = prisoner.attempts(Path())["read a file of a pickle's choice"]()
    with found:
        assert found.read()


def test_attempts_succeed_outside_the_jail(tmp_path: Path) -> None:
    """Else the tests above would show nothing."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "secret").write_text("secret")
    free = prisoner.attempts(tmp_path)
    names = [
        "read a file outside",
        "list a folder outside",
        "make a symbolic link",
        "send by UDP",
        "change a file's mode",
    ]
    assert [prisoner.outcome(free[name]) for name in names] == len(names) * ["done"]
    with socket.create_server(("127.0.0.1", 0)):
        assert prisoner.outcome(free["listen by TCP"]) == "done"


def test_a_process_with_threads_is_not_half_jailed(tmp_path: Path) -> None:
    """Refused before the first layer, or this test's process would be confined from here on."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="before any thread"):
            jail.enter(jail.Cell((), (), tmp_path, Limits(1 << 30, 60, 1 << 20)))
    finally:
        stop.set()
        thread.join()


def test_secrets_leave_the_environment_while_a_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["STILLHOUSE_DATABASE", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "HF_TOKEN"]
    for name in names:
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    before = dict(os.environ)
    with without_secrets():
        seen = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    assert "s3cret" not in seen
    assert "OMP_NUM_THREADS=3" in seen
    assert dict(os.environ) == before
