"""All that can be asked of a job: a discriminated union on `type`."""

from typing import Annotated

from pydantic import Field

from service.contract.analyze_spec import AnalyzeSpec
from service.contract.prune_spec import PruneSpec
from service.contract.specs import DistillSpec

JobSpec = Annotated[DistillSpec | PruneSpec | AnalyzeSpec, Field(discriminator="type")]

JOB_TYPES = ("distill", "prune", "analyze")
