"""Broken uploads without end: every reader gets what mutations make of honest files, and must refuse in words.

    python -m benchmarks.fuzz --minutes 8 [--target pt2] [--engine atheris|seeds]

Each target (tests/unit/formats/fuzz_targets.py) runs in a process of its own, with bounded memory. With atheris the
mutations follow the coverage of the readers' Python code; without it seeds are tried in turn, and a finding is
repeated by its number. A finding is any error that is not `InputRejected`, a crash, or one reading of more than
ten seconds; its input is kept under --findings. The exit code is 1 when there are any.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

SLOWEST = 10  # seconds for one reading
MEMORY = 6 << 30  # bytes of address space, torch's and the engine's own among them
INSTRUMENTED = ["workers.formats", "workers.graph"]


class TooSlow(BaseException):
    """One reading takes too long; nothing catches it on the way."""


@dataclass
class Tally:
    """What happened so far, written where the parent finds it whatever becomes of this process."""

    path: Path
    name: str
    seconds: float
    until: float = 0.0
    executions: int = 0
    slowest: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)

    def begin(self) -> None:
        """The readers are imported: from now on time counts."""
        self.until = time.monotonic() + self.seconds

    def save(self) -> None:
        told = {"executions": self.executions, "slowest": self.slowest, "outcomes": self.outcomes}
        self.path.write_text(json.dumps({**told, "findings": self.findings}))


def main() -> None:
    arguments = parsed()
    if arguments.child:
        return fuzz(arguments)
    from tests.unit.formats.fuzz_targets import TARGETS

    names = [arguments.target] if arguments.target else list(TARGETS)
    arguments.findings.mkdir(parents=True, exist_ok=True)
    seconds = arguments.minutes * 60 / len(names)
    num_findings = sum(run(name, seconds, arguments) for name in names)
    print(f"{num_findings} findings")
    sys.exit(bool(num_findings))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="over all targets")
    parser.add_argument("--target", help="one of tests/unit/formats/fuzz_targets.py")
    parser.add_argument("--engine", choices=["atheris", "seeds"], default=engine())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir(), "stillhouse-fuzz"))
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def engine() -> str:
    try:
        import atheris  # noqa: F401  whether it is there
    except ImportError:
        return "seeds"
    return "atheris"


def run(name: str, seconds: float, arguments: argparse.Namespace) -> int:
    """Fuzz one target in a child, print its line, and return the number of findings."""
    options = ["--engine", arguments.engine, "--findings", str(arguments.findings), "--seed", str(arguments.seed)]
    command = [sys.executable, "-m", "benchmarks.fuzz", "--target", name, "--child", str(seconds), *options]
    (tally := arguments.findings / f"{name}.json").unlink(missing_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    told: dict[str, Any] = json.loads(tally.read_text()) if tally.exists() else {"executions": 0, "outcomes": {}}
    outcomes = Counter(told["outcomes"])
    common = ", ".join(f"{code or 'read'} {count}" for code, count in outcomes.most_common(6))
    print(f"{name:18} {told['executions']:8d} executions, slowest {told.get('slowest', 0):.2f} s: {common}", flush=True)
    findings = told.get("findings", {})
    for what, where in findings.items():
        print(f"  FINDING {what}\n    {where}")
    died = done.returncode != 0
    if died:
        print(f"  FINDING the process ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return len(findings) + died


# In the child ------------------------------------------------------------------------------------------------------


def fuzz(arguments: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")
    tally = Tally(arguments.findings / f"{arguments.target}.json", arguments.target, arguments.child)
    signal.signal(signal.SIGALRM, too_slow)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with_atheris(tally, arguments.seed) if arguments.engine == "atheris" else with_seeds(tally, arguments.seed)


def too_slow(_number: int, _frame: Any) -> None:
    raise TooSlow


def with_seeds(tally: Tally, seed: int) -> None:
    from tests.unit.formats.fuzz_targets import TARGETS

    target = TARGETS[tally.name]
    target.read(target.honest())
    tally.begin()
    while time.monotonic() < tally.until:
        attempt(tally, target, target.mutated(Random(seed)), f"seed {seed}: ")
        seed += 1
    tally.save()


def with_atheris(tally: Tally, seed: int) -> None:
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.unit.formats.fuzz_targets import TARGETS
    target = TARGETS[tally.name]

    def one(content: bytes) -> None:
        attempt(tally, target, content, "")
        if time.monotonic() > tally.until:
            tally.save()
            os._exit(0)

    def mutate(content: bytes, max_size: int, number: int) -> bytes:
        random = Random(number)
        kind = random.random()
        if kind < 0.2:
            return bytes(atheris.Mutate(content, max_size))
        return target.mutated(random, content if kind < 0.5 else None)[:max_size]

    target.read(target.honest())
    tally.begin()
    with tempfile.TemporaryDirectory() as corpus:
        Path(corpus, "honest").write_bytes(target.honest())
        largest = 2 * len(target.honest()) + 65536
        options = [f"-max_len={largest}", f"-seed={seed + 1}", "-rss_limit_mb=0", "-timeout=60"]
        atheris.Setup([sys.argv[0], corpus, *options], one, custom_mutator=mutate)
        atheris.Fuzz()


def attempt(tally: Tally, target: Any, content: bytes, which: str) -> None:
    """Read once; note the outcome, and keep the input of a finding that is new."""
    began = time.monotonic()
    signal.alarm(SLOWEST)
    try:
        outcome = target.read(content)
    except MemoryError:
        outcome = "out of memory"  # the jailed reader says so in words
    except (Exception, TooSlow) as error:  # noqa: BLE001  that is what is looked for
        outcome = "out of memory" if "allocate memory" in str(error) else "FINDING"
        if outcome == "FINDING":
            keep(tally, content, which, error)
    finally:
        signal.alarm(0)
    tally.executions += 1
    tally.outcomes[outcome] += 1
    tally.slowest = max(tally.slowest, time.monotonic() - began)
    if tally.executions % 100 == 1 or outcome == "FINDING":
        tally.save()


def keep(tally: Tally, content: bytes, which: str, error: BaseException) -> None:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "fuzz" not in frame.filename]
    place = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames[-5:]))
    what = f"{type(error).__name__} at {place}"
    if what not in tally.findings:
        path = tally.path.with_name(f"{tally.name}-{sha256(content).hexdigest()[:12]}")
        path.write_bytes(content)
        tally.findings[what] = f"{which}{path}: {str(error)[:300]!r}"


if __name__ == "__main__":
    main()
