"""What a job's child is told when it starts: paths and numbers, nothing that needs SQL or a storage."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict


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
