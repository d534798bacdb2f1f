"""A real `stillhouse serve` for a benchmark, in a temporary folder, and the processes it is made of."""

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stack:
    url: str
    api_key: str
    data: Path

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}

    def api_pid(self) -> int:
        """The process that answers HTTP."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes()
                environ = (folder / "environ").read_bytes()
            except OSError:
                continue
            if b"uvicorn" in command and b"STILLHOUSE_DATA_DIR=" + str(self.data).encode() + b"\0" in environ:
                return int(folder.name)
        raise RuntimeError("no uvicorn process belongs to this stack")


@contextmanager
def serving() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as folder:
        data = Path(folder) / "data"
        command = [str(Path(sys.executable).with_name("stillhouse")), "serve", "--data", str(data), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                said = ""
                assert process.stdout is not None
                for line in process.stdout:
                    said += line
                    if ready := re.search(r"ready at (\S+)", line):
                        key = re.search(r"sh_\S+", said)
                        assert key is not None
                        yield Stack(ready[1], key[0], data)
                        break
                else:
                    raise RuntimeError(f"stillhouse serve ended before it was ready:\n{said}")
            finally:
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=90)
