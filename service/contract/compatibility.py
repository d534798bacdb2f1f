"""Whether a teacher, a dataset and a job fit together: a pure check of what inspection found.

The service asks when a job is submitted and both are ready; workers ask again before they start,
because at submission the inputs may still have been under inspection.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from service.contract.analyze_spec import AnalyzeSpec
from service.contract.criteria import CriterionOptions
from service.contract.errors import FieldError, Invalid
from service.contract.input_types import unfit_inputs, unfit_student
from service.contract.objectives import Objective
from service.contract.prune_spec import PruneSpec
from service.contract.specs import Architecture, ArchitectureStudent, DistillSpec, ShrunkStudent, Training

Facts = Mapping[str, Any]


def check(teacher: Facts, dataset: Facts, spec: DistillSpec, student: Facts | None = None) -> None:
    """Raise Invalid, naming every field of a distillation that does not fit.

    `teacher`, `dataset` and `student` (where the student is a registered model) are facts as
    inspection recorded them; what they leave unknown (None or absent) is not judged.
    """
    _refuse(
        *_shapes(teacher, dataset, "teacher"),
        *_labels(dataset, spec),
        *_kind_of_labels(dataset, spec.config.objective, "/config/objective"),
        *_splits(dataset, spec.config.training),
        *_student(teacher, spec, student),
        *_student_inputs(teacher, dataset, spec, student),
        *(_unknown_units(teacher, "/student/shrink") if isinstance(spec.student, ShrunkStudent) else ()),
    )


def check_pruning(model: Facts, dataset: Facts, spec: PruneSpec) -> None:
    """Raise Invalid, naming every field of a pruning job that does not fit; the target's reach is not judged."""
    recovery = spec.config.recovery
    _refuse(
        *_shapes(model, dataset, "model"),
        *_unknown_units(model, "/model"),
        *_labels_of_pruning(dataset, spec),
        *([] if recovery is None else _kind_of_labels(dataset, recovery.objective, "/config/recovery/objective")),
        *_splits(dataset, None if recovery is None else recovery.training, "/config/recovery/training"),
        *_judged(dataset, spec),
        *_kept(model, spec),
    )


def check_analysis(models: Sequence[Facts], dataset: Facts, spec: AnalyzeSpec) -> None:
    """Raise Invalid, naming every field of an analysis that does not fit; `models` in the order of the spec."""
    roles = ("model",) if len(models) == 1 else ("first model", "second model")
    _refuse(
        *(wrong for model, role in zip(models, roles, strict=True) for wrong in _shapes(model, dataset, role)),
        *_labels_of_analysis(dataset, spec),
        *_measured(dataset, spec),
        *_same_outputs(models),
    )


def _refuse(*wrong: FieldError) -> None:
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise Invalid(f"{wrong[0].pointer}: {wrong[0].detail}{more}", errors=wrong)


def completed(student: Architecture, teacher: Facts) -> Architecture:
    """Return the student with a missing input shape and number of classes taken from its teacher's facts."""
    shape = input_shape_of(teacher)
    return student.filled(None if shape is None else tuple(shape), num_classes_of(teacher))


def input_shape_of(model: Facts) -> list[int] | None:
    """Return the shape of one example that a model takes, without the batch."""
    return _example_shape(model.get("inputs"))


def num_classes_of(model: Facts) -> int | None:
    """Return the number of a model's outputs, when it has one row of them."""
    shape = _example_shape(model.get("outputs"))
    return shape[0] if shape is not None and len(shape) == 1 else None


def _example_shape(tensors: Any) -> list[int] | None:
    if not tensors or any(not isinstance(size, int) for size in tensors[0]["shape"][1:]):
        return None
    return list(tensors[0]["shape"][1:])


def _differ(one: Any, other: Any) -> bool:
    return one is not None and other is not None and one != other


def _shapes(model: Facts, dataset: Facts, role: str) -> Iterator[FieldError]:
    yield from unfit_inputs(model, dataset, role)
    takes, given = input_shape_of(model), dataset.get("input_shape")
    if _differ(takes, given if given is None else list(given)):
        yield FieldError(pointer="/dataset", detail=f"its inputs have shape {given}; the {role} takes {takes}")
    outputs, classes = num_classes_of(model), dataset.get("num_classes")
    if outputs is not None and classes is not None and classes > outputs and dataset.get("labelled") is not False:
        yield FieldError(pointer="/dataset", detail=f"it has {classes} classes; the {role} has {outputs} outputs")


def _labels(dataset: Facts, spec: DistillSpec) -> Iterator[FieldError]:
    if dataset.get("labelled") is not False:
        return
    config = spec.config
    if config.objective.uses_labels:
        option, detail = config.objective.without_labels
        yield FieldError(pointer=f"/config/objective/{option}", detail=detail)
    if config.control:
        detail = "a control is trained on the labels alone and the dataset has none; leave it out"
        yield FieldError(pointer="/config/control", detail=detail)
    stopping = config.training.early_stopping
    if stopping is not None and stopping.monitor == "accuracy":
        detail = "accuracy needs labels and the dataset has none; monitor the loss"
        yield FieldError(pointer="/config/training/early_stopping/monitor", detail=detail)


def _kind_of_labels(dataset: Facts, objective: Objective, pointer: str) -> Iterator[FieldError]:
    task = dataset.get("task")
    if dataset.get("labelled") is False or not objective.uses_labels or task in {None, objective.task}:
        return
    detail = f"{objective.name} is for {objective.task} labels, and the dataset's are for {task}"
    yield FieldError(pointer=f"{pointer}/name", detail=f"{detail}; GET /v1/objectives lists each one's task")


def _labels_of_pruning(dataset: Facts, spec: PruneSpec) -> Iterator[FieldError]:
    if dataset.get("labelled") is not False:
        return
    config = spec.config
    yield from _labels_of_criterion(config.criterion, "/config/criterion", "/config/criterion/name")
    if config.target.max_accuracy_drop is not None:
        detail = "accuracy needs labels and the dataset has none; use max_kl"
        yield FieldError(pointer="/config/target/max_accuracy_drop", detail=detail)
    if config.recovery is not None and config.recovery.objective.uses_labels:
        option, detail = config.recovery.objective.without_labels
        yield FieldError(pointer=f"/config/recovery/objective/{option}", detail=detail)
    for name in ("taylor", "scratch"):
        if name in config.controls:
            detail = f"the control {name} needs labels and the dataset has none; leave it out"
            yield FieldError(pointer="/config/controls", detail=detail)


def _labels_of_analysis(dataset: Facts, spec: AnalyzeSpec) -> Iterator[FieldError]:
    if dataset.get("labelled") is not False:
        return
    for place, criterion in enumerate(spec.config.criteria):
        pointer = f"/config/criteria/{place}"
        yield from _labels_of_criterion(criterion, pointer, pointer)


def _labels_of_criterion(criterion: CriterionOptions, pointer: str, name_pointer: str) -> Iterator[FieldError]:
    name = getattr(criterion, "name", "")
    if criterion.needs_labels:
        detail = f"{name} needs labels and the dataset has none; output_kl does without"
        yield FieldError(pointer=name_pointer, detail=detail)
    if getattr(criterion, "loss", None) == "task":
        detail = "the loss task needs labels and the dataset has none; leave it out to learn by distillation"
        yield FieldError(pointer=f"{pointer}/loss", detail=detail)


def _unknown_units(model: Facts, pointer: str) -> Iterator[FieldError]:
    if "units" in model and model["units"] is None:
        notes = [note for note in model.get("notes") or () if "units" in note]
        detail = "; ".join(notes) or "its units are not known"
        yield FieldError(pointer=pointer, detail=f"it cannot be pruned: {detail}")


def _measured(dataset: Facts, spec: AnalyzeSpec) -> Iterator[FieldError]:
    splits = dataset.get("splits")
    if splits is None or splits.get(spec.config.split):
        return
    known = ", ".join(name for name, size in splits.items() if size) or "none"
    detail = f"the dataset's {spec.config.split} split is empty; it has {known}"
    yield FieldError(pointer="/config/split", detail=detail)


def _same_outputs(models: Sequence[Facts]) -> Iterator[FieldError]:
    counts = [num_classes_of(model) for model in models]
    if len(models) > 1 and _differ(*counts):
        detail = f"it has {counts[1]} outputs and the first model {counts[0]}; only models of the same are compared"
        yield FieldError(pointer="/models/1", detail=detail)


def _judged(dataset: Facts, spec: PruneSpec) -> Iterator[FieldError]:
    splits = dataset.get("splits")
    if splits is None or splits.get("validation"):
        return
    for name in ("max_kl", "max_accuracy_drop"):
        if getattr(spec.config.target, name) is not None:
            detail = "the dataset's validation split is empty, and this limit is judged on it; leave it out"
            yield FieldError(pointer=f"/config/target/{name}", detail=detail)


def _kept(model: Facts, spec: PruneSpec) -> Iterator[FieldError]:
    units = model.get("units")
    if not units or units.get("groups_left_out"):
        return
    known = {group["name"]: group["units"] for group in units["groups"]}
    for name, kept in spec.config.keep.items():
        if name not in known:
            detail = f"the model has no group {name!r}; its record lists them under units"
            yield FieldError(pointer="/config/keep", detail=detail)
        elif kept > known[name]:
            yield FieldError(pointer="/config/keep", detail=f"{name} has {known[name]} units and cannot keep {kept}")


def _splits(dataset: Facts, training: Training | None, pointer: str = "/config/training") -> Iterator[FieldError]:
    splits = dataset.get("splits")
    if splits is None:
        return
    for name, purpose in (("train", "train on"), ("test", "write the report on")):
        if not splits.get(name):
            yield FieldError(pointer="/dataset", detail=f"its {name} split is empty; there is nothing to {purpose}")
    if splits.get("validation"):
        return
    if training is not None and training.early_stopping is not None:
        detail = "the dataset's validation split is empty, and stopping early looks at it; leave it out"
        yield FieldError(pointer=f"{pointer}/early_stopping", detail=detail)
    if training is not None and training.select == "best":
        detail = 'the dataset\'s validation split is empty, so no epoch can be called the best; use "last"'
        yield FieldError(pointer=f"{pointer}/select", detail=detail)


def _student(teacher: Facts, spec: DistillSpec, student: Facts | None) -> Iterator[FieldError]:
    takes, outputs = input_shape_of(teacher), num_classes_of(teacher)
    if isinstance(spec.student, ArchitectureStudent):
        options = spec.student.architecture.options
        shape = None if options.input_shape is None else list(options.input_shape)
        classes, pointer = options.num_classes, "/student/architecture/options"
        shape_pointer, classes_pointer = f"{pointer}/input_shape", f"{pointer}/num_classes"
    elif student is not None:
        shape, classes = input_shape_of(student), num_classes_of(student)
        shape_pointer = classes_pointer = "/student/model"
    else:
        return
    if _differ(takes, shape):
        yield FieldError(pointer=shape_pointer, detail=f"the student takes {shape}; the teacher takes {takes}")
    if _differ(outputs, classes):
        detail = f"the student has {classes} outputs; the teacher has {outputs}"
        yield FieldError(pointer=classes_pointer, detail=detail)


def _student_inputs(teacher: Facts, dataset: Facts, spec: DistillSpec, student: Facts | None) -> Iterator[FieldError]:
    if isinstance(spec.student, ArchitectureStudent):
        yield from unfit_student(teacher, dataset, None, "/student/architecture")
    elif student is not None:
        yield from unfit_student(teacher, dataset, student, "/student/model")
