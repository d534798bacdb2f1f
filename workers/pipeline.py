"""What each type of job does: from its type to its pipeline, and to the stages that the pipeline passes through."""

from collections.abc import Callable

from service.contract.specs import JobSpec
from workers import distill
from workers.job import JobContext, JobResult

__all__ = ["PIPELINES", "JobContext", "JobResult", "stages_of"]

PIPELINES: dict[str, Callable[[JobContext], JobResult]] = {"distill": distill.distill}
STAGES: dict[str, Callable[[JobSpec], tuple[str, ...]]] = {"distill": distill.stages_of}


def stages_of(spec: JobSpec) -> tuple[str, ...]:
    """The names of a job's stages, in order."""
    return STAGES[spec.type](spec)
