"""What each type of job does: from its type to its pipeline, and to the stages that the pipeline passes through."""

from collections.abc import Callable
from typing import Any

from service.contract.job_spec import JobSpec
from workers import analyze, distill, prune
from workers.job import JobContext, JobReport, JobResult

__all__ = ["PIPELINES", "JobContext", "JobReport", "JobResult", "stages_of"]

# Each takes the context and the spec of its own type.
PIPELINES: dict[str, Callable[[Any], JobResult | JobReport]] = {
    "distill": distill.distill,
    "prune": prune.prune_job,
    "analyze": analyze.analyze,
}
STAGES: dict[str, Callable[[Any], tuple[str, ...]]] = {
    "distill": distill.stages_of,
    "prune": prune.stages_of,
    "analyze": analyze.stages_of,
}


def stages_of(spec: JobSpec) -> tuple[str, ...]:
    """The names of a job's stages, in order."""
    return STAGES[spec.type](spec)
