"""The jailed reader of a user without privileges, as in a container: the same jail, the same answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.permissions import open_to_all
from tests.unit.formats.hostile_files import FILES, READ, Trap

ROOT = Path(__file__).parents[2]
NOBODY = 65534
SAMPLE = ("pickled_sample_inputs", "weights_with_use_pickle", "checkpoint_with_a_reduce", "object_array", "npz_bomb",
          "picture of 10^10 pixels", "safetensors_with_400_000_entries")  # fmt: skip
# Imports come first, as in the fork server, for not everybody may read the interpreter; then, in a fork each, the
# user changes, the jail closes and a file is read.
SCRIPT = """
import json, os, sys
from pathlib import Path
from workers import reader
from workers.jail import jail, probe

user, outside, orders = int(sys.argv[1]), sys.argv[2], [reader.ReadOrder(**each) for each in json.load(sys.stdin)]

def imprisoned(cell, work):
    if (child := os.fork()) == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        jail.enter(cell)
        print(json.dumps(work()), flush=True)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def attempts():
    held = {name: holds() for name, holds in probe.HELD.items()}
    return held | {name: probe._refused(attempt, outside) for name, attempt in probe.ATTEMPTS.items()}

def reading(order):
    word = reader._last_word(order)
    return {"user": os.getuid(), "code": word.fault.code if word.kind == "failed" else "read"}

half = len(orders) // 2
for order in orders[:half]:
    reader._last_word(order)  # what is imported late is imported now
orders = orders[half:]
codes = [imprisoned(reader._cell(orders[0]), attempts)]
codes += [imprisoned(reader._cell(order), lambda: reading(order)) for order in orders]
sys.exit(max(codes, key=abs))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_user_without_privileges_reads_in_the_same_jail(tmp_path: Path) -> None:
    from tests.integration.test_hostile_files import order_for
    from workers.jail import probe

    trap = Trap(tmp_path / "marker", 9)
    orders = []
    for number, name in enumerate((*SAMPLE, *SAMPLE)):
        (folder := tmp_path / str(number)).mkdir()
        order = order_for(folder, FILES[name])
        FILES[name].build(order.folder / FILES[name].file, trap)
        orders.append(order.model_dump(mode="json"))
    (outside := tmp_path / "outside").write_text("not a program")
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o700)
    open_to_all(tmp_path.parent)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(NOBODY), str(outside)], input=json.dumps(orders), cwd=ROOT,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    jail, *told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    mine = probe.in_force()
    assert jail == {name: mine[name] for name in jail}
    for name, answer in zip(SAMPLE, told, strict=True):
        assert answer["user"] == NOBODY
        assert answer["code"] in FILES[name].codes, name
    assert told[0]["code"] == READ
    assert not trap.marker.exists()
