"""What a job's child is told when it starts: paths and numbers, nothing that needs SQL or a storage."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from service.contract.records import JobRecord
from service.contract.settings import Settings


class RunOrder(BaseModel):
    """One attempt at a job. `inputs` are canonical folders by resource id."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    attempt: int
    epoch: int
    spec: dict[str, Any]
    inputs: dict[str, Path]
    work_dir: Path
    device: str
    num_threads: int
    checkpoint: Path | None
    checkpoint_seconds: float
    log_level: str
    log_format: str

    @classmethod
    def for_attempt(
        cls,
        job: JobRecord,
        settings: Settings,
        inputs: dict[str, Path],
        work_dir: Path,
        checkpoint: Path | None,
        *,
        num_threads: int,
    ) -> "RunOrder":
        """Return the order for one attempt at a job, as its row was when it was claimed."""
        return cls(
            job_id=job.id,
            attempt=job.attempt,
            epoch=job.epoch,
            spec=job.spec,
            inputs=inputs,
            work_dir=work_dir,
            device=settings.device,
            num_threads=num_threads,
            checkpoint=checkpoint,
            checkpoint_seconds=settings.checkpoint_seconds,
            log_level=settings.log_level,
            log_format=settings.log_format,
        )
