"""How much memory the API takes while 1 GiB arrives: peak resident set, before and during one upload.

    python -m benchmarks.upload_memory [--mib 1024]

Linux keeps a process's peak (VmHWM), and forgets it when 5 is written to /proc/PID/clear_refs.
"""

import argparse
import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from benchmarks.stack import serving

MIB = 2**20


def memory(pid: int, field: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def blocks(count: int, digest: "hashlib._Hash") -> Iterator[bytes]:
    block = os.urandom(MIB)
    for number in range(count):
        changed = number.to_bytes(8, "big") + block[8:]
        digest.update(changed)
        yield changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    mib = parser.parse_args().mib
    with serving() as stack, httpx.Client(base_url=stack.url, headers=stack.headers, timeout=600) as client:
        client.post("/v1/uploads", content=b"warm").raise_for_status()
        pid = stack.api_pid()
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        before = memory(pid, "VmRSS")
        digest = hashlib.sha256()
        started = time.perf_counter()
        answer = client.post(
            "/v1/uploads", content=blocks(mib, digest), headers={"Upload-Complete": "?1"}
        ).raise_for_status()
        seconds = time.perf_counter() - started
        peak = memory(pid, "VmHWM")
        assert answer.json()["sha256"] == digest.hexdigest()
        assert answer.json()["size"] == mib * MIB
    print(f"uploaded {mib} MiB in {seconds:.1f} s ({mib / seconds:.0f} MiB/s); the digest is right")
    print(f"resident before {before / MIB:.1f} MiB, peak while it arrived {peak / MIB:.1f} MiB")
    growth = (peak - before) / MIB
    print(f"growth {growth:.1f} MiB (aim: under 32 MiB): {'met' if growth < 32 else 'MISSED'}")


if __name__ == "__main__":
    main()
