"""One attempt at a job as its pipeline sees it, and what comes out: no SQL, no storage, only folders and a journal."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from service.contract.specs import Job
from workers.journal import Journal

Spec_co = TypeVar("Spec_co", bound=Job, covariant=True)


@dataclass(frozen=True)
class JobContext(Generic[Spec_co]):
    """One attempt at a job."""

    job_id: str
    spec: Spec_co
    inputs: Mapping[str, Path]  # canonical folders by the ids that the spec names
    work_dir: Path  # for files of this attempt
    seed: int
    device: torch.device
    num_threads: int
    checkpoint: Path | None  # to resume from
    journal: Journal


@dataclass(frozen=True)
class JobResult:
    """What a job made: a model's files, and what its record is to say."""

    folder: Path
    name: str
    declaration: dict[str, Any]
    facts: dict[str, Any]
    report: dict[str, Any]


@dataclass(frozen=True)
class JobReport:
    """What a job says that makes no model."""

    report: dict[str, Any]
