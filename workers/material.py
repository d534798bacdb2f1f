"""What a job works with: its student as the spec describes it, what inspection recorded, the split to report on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from service.contract import compatibility
from service.contract.errors import FieldError, Invalid
from service.contract.reports import Selection
from service.contract.specs import Architecture, ArchitectureStudent, DistillSpec, ModelStudent
from workers.formats.models import load_architecture
from workers.graph.layer_graph import LayerGraph
from workers.graph.redrawing import redraw
from workers.students.architectures import build
from workers.training.data import Dataset, Split, SplitName
from workers.training.outcome import TrainingOutcome

DESCRIPTIONS = ("model.json", "dataset.json")


def recorded_facts(folder: Path) -> dict[str, Any]:
    """What inspection found out about a canonical model or dataset."""
    description = next(path for name in DESCRIPTIONS if (path := folder / name).exists())
    facts: dict[str, Any] = json.loads(description.read_bytes())["facts"]
    return facts


def student_architecture(spec: DistillSpec, inputs: Mapping[str, Path]) -> Architecture | None:
    """The student's architecture, None for a graph; what it leaves out is the teacher's."""
    student = spec.student
    if isinstance(student, ArchitectureStudent):
        return compatibility.completed(student.architecture, recorded_facts(inputs[spec.teacher]))
    return load_architecture(inputs[student.model]) if isinstance(student, ModelStudent) else None


def built(architecture: Architecture, seed: int) -> nn.Module:
    """A network with new weights from `seed`. Raises Invalid where the options do not go together."""
    options = architecture.options
    pointer = "/student/architecture/options"
    if options.input_shape is None or options.num_classes is None:
        detail = "input_shape and num_classes are known neither from the student nor from its teacher; give them"
        raise Invalid(f"{pointer}: {detail}", errors=(FieldError(pointer=pointer, detail=detail),))
    own = options.model_dump(exclude={"input_shape", "num_classes"})
    try:
        return build(
            architecture.name, own, input_shape=options.input_shape, num_classes=options.num_classes, seed=seed
        )
    except ValueError as error:
        raise Invalid(f"{pointer}: {error}", errors=(FieldError(pointer=pointer, detail=str(error)),)) from error


def redrawn(network: nn.Module, seed: int) -> nn.Module:
    """A network that came as a graph, with new weights from `seed`. Raises Invalid where layers cannot draw them."""
    assert isinstance(network, LayerGraph)  # noqa: S101  what has no architecture is a graph
    try:
        redraw(network, seed)
    except ValueError as error:
        wrong = FieldError(pointer="/student/reset", detail=str(error))
        raise Invalid(f"{wrong.pointer}: {error}", errors=(wrong,)) from error
    return network


def held_out(dataset: Dataset) -> tuple[SplitName, Split]:
    """The split that the report is written on: test, or else the next best. Raises Invalid for no split at all."""
    splits: dict[SplitName, Split | None] = {
        "test": dataset.test,
        "validation": dataset.validation,
        "train": dataset.train,
    }
    for name, split in splits.items():
        if split is not None:
            return name, split
    raise Invalid("the dataset has no examples in any split")


def selection_of(outcome: TrainingOutcome, which: Literal["best", "last"]) -> Selection:
    """Which epoch becomes the artifact, and which is the other candidate, if it is another epoch."""
    other: Literal["best", "last"] = "last" if which == "best" else "best"
    differs = outcome.epoch(other) != outcome.epoch(which)
    return Selection(
        selected=which,
        epoch=outcome.epoch(which),
        other=other if differs else None,
        other_epoch=outcome.epoch(other) if differs else None,
    )
