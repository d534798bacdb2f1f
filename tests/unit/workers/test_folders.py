import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workers.folders import held_folder, locked, remove_abandoned


def test_a_held_folder_is_removed_with_all_that_is_in_it(tmp_path: Path) -> None:
    with held_folder(tmp_path / "a" / "b") as folder:
        (folder / "file").write_text("x")
        assert remove_abandoned(tmp_path / "a", older_than=0) == []
    assert not folder.exists()


def test_the_folder_of_a_killed_process_is_abandoned(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from workers.folders import held_folder\n"
        "with held_folder(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "j" / "x")], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert remove_abandoned(tmp_path / "j", older_than=0) == []
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert remove_abandoned(tmp_path / "j", older_than=60) == [], "it may just be about to be locked"
    assert remove_abandoned(tmp_path / "j", older_than=0) == ["x"]
    assert not (tmp_path / "j" / "x").exists()


def test_a_missing_parent_holds_nothing_abandoned(tmp_path: Path) -> None:
    assert remove_abandoned(tmp_path / "nowhere") == []


def test_a_lock_is_waited_for_only_so_long(tmp_path: Path) -> None:
    with locked(tmp_path / "k", 0) as first:
        assert first
        began = time.monotonic()
        with locked(tmp_path / "k", 0.2) as second:
            assert not second
        assert time.monotonic() - began >= 0.2
    with locked(tmp_path / "k", 0) as third:
        assert third


def test_waiting_for_a_lock_can_be_interrupted(tmp_path: Path) -> None:
    def check() -> None:
        raise InterruptedError

    with locked(tmp_path / "k", 0), pytest.raises(InterruptedError), locked(tmp_path / "k", 60, check):
        pass
