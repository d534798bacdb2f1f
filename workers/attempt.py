"""One attempt at a job, whatever it does: its context, its course over all attempts, where its numbers are measured."""

import platform
from importlib.metadata import version
from typing import Generic

import numpy as np
import torch

from service.contract.reports import Environment
from workers.course import Course
from workers.job import JobContext, Spec_co
from workers.material import recorded_facts


class Attempt(Generic[Spec_co]):
    """One attempt at a job."""

    precision = "float32"  # in which the result was computed

    def __init__(self, context: JobContext[Spec_co]) -> None:
        self.context, self.spec, self.journal = context, context.spec, context.journal
        choices = {
            "num_threads": context.num_threads,
            "device": context.device.type,
            "torch": str(torch.__version__),
        }
        self.course = Course(context.journal, context.work_dir, context.checkpoint, choices)
        torch.set_num_threads(self.course.choices["num_threads"])
        changed = [name for name in ("device", "torch") if self.course.choices[name] != choices[name]]
        for name in changed:
            text = f"resumed with {name} {choices[name]} after {self.course.choices[name]}: the last bits may differ"
            self.journal.event("warning", {"text": text})

    def classes(self) -> list[str] | None:
        """What the dataset calls its classes, where it has names for them."""
        dataset = self.spec.model_dump(include={"dataset"})["dataset"]
        found: list[str] | None = recorded_facts(self.context.inputs[dataset]).get("classes")
        return found

    def environment(self) -> Environment:
        """Where the numbers are measured."""
        device = self.context.device
        versions = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
        return Environment(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            threads=torch.get_num_threads(),
            precision=self.precision,
            versions={"stillhouse": version("stillhouse"), **versions},
        )
