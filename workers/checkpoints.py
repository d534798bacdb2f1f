"""The recorded checkpoint of a job: stored, found again by its hash, and cleared away.

The one before the last is kept too: should the last not be what was recorded (a flipped bit), the
job resumes from its predecessor. The number of threads is recorded with it, because the same
threads are needed for the same bits.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from structlog import get_logger

from service.contract.errors import NotFound
from service.contract.storage import Storage, StoredFile, hash_file

log = get_logger(__name__)


class Earlier(BaseModel):
    """A stored checkpoint after `step` steps."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    size: int
    step: int


class Checkpoint(Earlier):
    """What a job's row holds of its last checkpoint."""

    num_threads: int
    previous: Earlier | None = None

    @classmethod
    def after(cls, before: "Checkpoint | None", file: StoredFile, step: int, num_threads: int) -> "Checkpoint":
        """Return the record of a checkpoint that follows `before`."""
        previous = None if before is None else Earlier(sha256=before.sha256, size=before.size, step=before.step)
        return cls(sha256=file.sha256, size=file.size, step=step, num_threads=num_threads, previous=previous)

    @property
    def digests(self) -> list[str]:
        """The files that this record needs."""
        return [self.sha256] + ([self.previous.sha256] if self.previous else [])


def recorded(row: Mapping[str, Any] | None) -> Checkpoint | None:
    """Read what a job's row holds."""
    return None if row is None else Checkpoint.model_validate(row)


def restore(storage: Storage, wanted: Checkpoint, folder: Path) -> tuple[Path | None, Checkpoint | None, list[str]]:
    """Fetch the newest checkpoint that is what was recorded.

    Return its path and its record, and what was wrong with newer ones.
    """
    candidates = [wanted]
    if wanted.previous is not None:
        candidates.append(Checkpoint(**wanted.previous.model_dump(), num_threads=wanted.num_threads))
    complaints = []
    for candidate in candidates:
        path = folder / f"resume-{candidate.step}.checkpoint"
        try:
            storage.fetch(candidate.sha256, path)
        except NotFound:
            complaints.append(f"the checkpoint of step {candidate.step} is not in the storage")
            continue
        if hash_file(path).sha256 == candidate.sha256:
            return path, candidate, complaints
        path.unlink()
        complaints.append(f"the checkpoint of step {candidate.step} is damaged: its hash is not the recorded one")
    return None, None, complaints
