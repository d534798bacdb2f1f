"""All that can be asked of a job: a discriminated union on `type`."""

from typing import Annotated

from pydantic import Field

from service.contract.prune_spec import PruneSpec
from service.contract.specs import DistillSpec

JobSpec = Annotated[DistillSpec | PruneSpec, Field(discriminator="type")]

JOB_TYPES = ("distill", "prune")
LATER_JOB_TYPES = ("analyze",)
