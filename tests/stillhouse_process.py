"""A real `stillhouse serve` for tests, and a look at which processes belong to a data folder."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

STILLHOUSE = [sys.executable, "-m", "service.cli"]
START_SECONDS = 120.0  # on a busy machine; a few seconds on an idle one


def processes_of(data: Path) -> dict[int, str]:
    """Return the living processes that work on or in this data folder, by number, with their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environ = (folder / "environ").read_bytes().split(b"\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            told = f"STILLHOUSE_DATA_DIR={data}".encode() in environ or (folder / "cwd").readlink() == data
            if state not in "ZX" and (told or f"--data {data} " in command or f"{data}/" in command):
                found[int(folder.name)] = command
    return found


class StillhouseProcess:
    """`stillhouse serve` on a free port, from when it is ready until the with-block ends."""

    def __init__(self, data: Path, *arguments: str, **environ: str) -> None:
        self.data = data
        data.parent.mkdir(parents=True, exist_ok=True)
        self.out, self.err = (data.parent / f"{data.name[:20]}.{name}" for name in ("out", "err"))
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [*STILLHOUSE, "serve", "--data", str(data), "--port", "0", *arguments],
                stdout=out,
                stderr=err,
                env=os.environ | environ,
            )
        self.url = self._wait_until_ready()
        shown = re.search(r"API key: (\S+)", self.said())
        self.api_key = shown[1] if shown else ""

    def said(self) -> str:
        """What it printed on stdout."""
        return self.out.read_text()

    def complained(self) -> str:
        """What it printed on stderr."""
        return self.err.read_text()

    def _wait_until_ready(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while not (ready := re.search(r"ready at (\S+)", self.said())):
            ended = self.process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"stillhouse serve did not become ready: {self.said()}{self.complained()}")
            time.sleep(0.05)
        return ready[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(120)
