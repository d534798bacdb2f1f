"""Untrusted files become our own canonical form, in a confined child process, once for each content.

The canonical form is cached by what determines it: the files' digests, the parts of the declaration
that bear on reading, and the reader's version. An entry is complete or absent; two workers that want
the same one do not both read it, unless one is stuck.

    cache/<key>/canonical/    what `workers.formats` wrote
    cache/<key>/facts.json    what it found; the folder's time is that of its last use
"""

import hashlib
import json
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from structlog import get_logger

from service.contract.errors import InputRejected, StillhouseError, Unavailable
from service.contract.settings import Settings
from service.contract.specs import DatasetDeclaration, ModelDeclaration
from service.contract.storage import Storage, StoredFile, flush
from workers import limits, logs
from workers.cache import evict, touch
from workers.child import Child
from workers.folders import held_folder, locked
from workers.jail.jail import NOT_ENTERED, Cell
from workers.lifeline import Lifeline
from workers.pipe import Failed, Read

READER_VERSION = 2  # raise it when `workers.formats` writes something else for the same input
WALL_CLOCK_FACTOR = 4  # reading may take this many times its CPU time while it waits for the disk
Kind = Literal["model", "dataset"]
READING_PARTS: dict[Kind, tuple[str, ...]] = {"model": ("architecture",), "dataset": ("splits", "transform", "task")}
WEIGHTS, PROGRAM = "model.safetensors", "model.pt2"
NOT_UPLOADED = "upl_" + 26 * "0"  # in the declaration of a model that a job made: its files have no upload
log = get_logger(__name__)


class ReadOrder(BaseModel):
    """What the reading child is told."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    folder: Path
    declaration: dict[str, Any]
    out: Path
    scratch: Path
    memory_bytes: int
    cpu_seconds: int
    max_bytes: int
    log_level: str
    log_format: str


def cache_key(kind: Kind, declaration: Mapping[str, Any], files: Mapping[str, StoredFile]) -> str:
    """Return the SHA-256 of all that determines the canonical form."""
    document = {
        "reader": READER_VERSION,
        "kind": kind,
        "declaration": {part: declaration.get(part) for part in READING_PARTS[kind]},
        "files": {path: file.sha256 for path, file in files.items()},
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def canonical(
    storage: Storage,
    settings: Settings,
    kind: Kind,
    declaration: Mapping[str, Any],
    files: Mapping[str, StoredFile],
    *,
    check: Callable[[], None] = lambda: None,
) -> tuple[Path, dict[str, Any]]:
    """Return the canonical folder of a model or dataset (read-only to all), and its facts.

    `check` is called while this waits, and may raise to give up. Raises InputRejected, NotFound
    (a file is not in the storage), Unavailable.
    """
    declaration, files = _as_uploaded(declaration, files)
    cache = settings.cache_dir.absolute()
    entry = cache / cache_key(kind, declaration, files)
    if (found := _lookup(entry)) is not None:
        return found
    with locked(cache / "locks" / entry.name, settings.lease_seconds, check):
        if (found := _lookup(entry)) is not None:  # read by another worker meanwhile
            return found
        with held_folder(cache / "incoming" / f"{entry.name}-{secrets.token_hex(4)}") as folder:
            _fetch(storage, files, folder / "files")
            facts = _read(settings, kind, declaration, folder, check)
            _enter(folder / "entry", facts, entry)
        evict(cache, settings.cache_bytes, keep=entry)
    return entry / "canonical", facts


def _as_uploaded(
    declaration: Mapping[str, Any], files: Mapping[str, StoredFile]
) -> tuple[Mapping[str, Any], Mapping[str, StoredFile]]:
    """Look at what a job made as if somebody had uploaded it: the weights of an architecture, or else the graph."""
    if declaration.get("files"):
        return declaration, files
    name = PROGRAM if declaration.get("architecture") is None else WEIGHTS
    return {**declaration, "files": {name: NOT_UPLOADED}}, {name: files[name]}


def _lookup(entry: Path) -> tuple[Path, dict[str, Any]] | None:
    try:
        facts: dict[str, Any] = json.loads((entry / "facts.json").read_bytes())
        touch(entry)
    except FileNotFoundError:
        return None
    return entry / "canonical", facts


def _fetch(storage: Storage, files: Mapping[str, StoredFile], folder: Path) -> None:
    for path, file in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        storage.fetch(file.sha256, target)


def _enter(made: Path, facts: dict[str, Any], entry: Path) -> None:
    """Make a finished folder an entry of the cache, in one step, once the disk holds all of it."""
    (made / "facts.json").write_text(json.dumps(facts))
    for path in sorted(made.rglob("*"), reverse=True):
        flush(path)
    flush(made)
    try:
        made.rename(entry)
    except OSError:
        if _lookup(entry) is None:  # else another worker was quicker: its entry says the same
            raise
    flush(entry.parent)


def _read(
    settings: Settings, kind: Kind, declaration: Mapping[str, Any], folder: Path, check: Callable[[], None]
) -> dict[str, Any]:
    """Run the reading child; what kills it again and again is rejected with the limit in words."""
    out = folder / "entry" / "canonical"
    out.mkdir(parents=True)
    (scratch := folder / "scratch").mkdir()
    order = ReadOrder(
        kind=kind,
        folder=folder / "files",
        declaration=dict(declaration),
        out=out,
        scratch=scratch,
        memory_bytes=settings.reader_memory_bytes,
        cpu_seconds=max(1, round(settings.reader_seconds)),
        max_bytes=settings.max_dataset_bytes,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )
    for _ in range(settings.max_attempts):
        facts, why = _attempt(order, check)
        if facts is not None:
            return facts
        _empty(out)
        _empty(scratch)
        log.warning("the reader was killed", kind=kind, why=why)
    raise InputRejected(f"reading the files killed the reader {settings.max_attempts} times: {why}")


def _attempt(order: ReadOrder, check: Callable[[], None]) -> tuple[dict[str, Any] | None, str]:
    """Return the facts, or None and how the child was killed by somebody else.

    Raises InputRejected; Unavailable when the child could not be jailed.
    """
    child = Child("workers.reader:read", order.model_dump_json(), cell=_cell(order))
    stop_at = time.monotonic() + WALL_CLOCK_FACTOR * order.cpu_seconds
    try:
        while not child.at_end:
            word = child.receive(0.2)
            if isinstance(word, Read):
                return word.facts, ""
            if isinstance(word, Failed):
                raise InputRejected(word.fault.detail, errors=word.fault.errors, code=word.fault.code)
            check()
            if time.monotonic() > stop_at:
                raise InputRejected(_too_slow(order))
    finally:
        exit_code = child.end()
    if exit_code == -signal.SIGKILL and not child.ran_out_of_memory():
        return None, "somebody sent it SIGKILL"
    if exit_code == NOT_ENTERED:
        raise Unavailable("the reader's jail cannot be entered on this worker; its log says why")
    raise InputRejected(_cause_of_death(order, exit_code))


def _cell(order: ReadOrder) -> Cell:
    bounds = limits.Limits(order.memory_bytes, order.cpu_seconds, order.max_bytes)
    return Cell((order.folder,), (order.out,), order.scratch, bounds)


def _too_slow(order: ReadOrder) -> str:
    return (
        f"reading the files takes longer than {order.cpu_seconds} s of CPU time allow "
        "(STILLHOUSE_READER_SECONDS); give smaller files, or ask the operator to raise the limit"
    )


def _too_large(order: ReadOrder) -> str:
    return (
        f"reading the files takes more memory than the reader may use ({limits.in_gib(order.memory_bytes)}, "
        "STILLHOUSE_READER_MEMORY_BYTES); give smaller files, or ask the operator to raise the limit"
    )


def _cause_of_death(order: ReadOrder, exit_code: int | None) -> str:
    if exit_code == -signal.SIGXCPU:
        return _too_slow(order)
    if exit_code in {-signal.SIGKILL, -signal.SIGABRT}:  # the kernel's for memory, or a failed allocation in C++
        return _too_large(order)
    how = signal.Signals(-exit_code).name if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
    return f"the files crash their reader ({how}); export them again, and report this if it happens again"


def _empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


# In the child ------------------------------------------------------------------------------------


def read(order_text: str, lifeline: Lifeline) -> None:
    """The reading child, in its jail: read, and say what was found or what is wrong."""
    order = ReadOrder.model_validate_json(order_text)
    logs.configure(order.log_level, order.log_format)
    lifeline.channel.send(_last_word(order))


def _last_word(order: ReadOrder) -> Read | Failed:
    try:
        return Read(facts=_facts(order))
    except StillhouseError as error:
        return Failed(fault=error.fault())
    except MemoryError:
        return Failed(fault=InputRejected(_too_large(order)).fault())
    except Exception as error:
        if "allocate memory" in str(error):  # torch's CPU allocator raises RuntimeError
            return Failed(fault=InputRejected(_too_large(order)).fault())
        log.exception("the reader failed", kind=order.kind)
        detail = f"the files cannot be read ({type(error).__name__}); export them again, or see the worker's log"
        return Failed(fault=InputRejected(detail).fault())


def _facts(order: ReadOrder) -> dict[str, Any]:
    import torch  # the Celery process imports this module, and never torch

    from workers.formats import datasets, models

    torch.set_num_threads(1)  # a reader gains little by threads, and its number of tasks is bounded
    if order.kind == "model":
        model = ModelDeclaration.model_validate(order.declaration)
        return dict(models.read_model(order.folder, model, order.out))
    dataset = DatasetDeclaration.model_validate(order.declaration)
    return dict(datasets.read_dataset(order.folder, dataset, order.out, max_bytes=order.max_bytes))
