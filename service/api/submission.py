"""From a request for a job to a resolved spec: known inputs, nothing left open that is known by now."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from service.contract import compatibility
from service.contract.errors import FieldError, Invalid, NotAvailable
from service.contract.records import DatasetRecord, ModelRecord, ResourceState
from service.contract.resources import find
from service.contract.specs import (
    LATER_JOB_TYPES,
    Architecture,
    ArchitectureStudent,
    JobSpec,
    ModelStudent,
    ShrunkStudent,
)
from service.keys import Caller

JOB_TYPES = ("distill",)


@dataclass(frozen=True)
class Resolved:
    """A job that can be accepted."""

    spec: JobSpec
    warnings: tuple[str, ...]
    settled: bool  # whether every input has been inspected


def check_type(body: Any) -> None:
    """Judge the job's type before its other fields, whose meaning depends on it. Raises Invalid."""
    kind = body.get("type") if isinstance(body, Mapping) else None
    if not isinstance(kind, str) or kind in JOB_TYPES:
        return
    if kind in LATER_JOB_TYPES:
        raise _at(
            "/type", f"jobs of type {kind} come with a later version; this one knows {', '.join(JOB_TYPES)}", True
        )
    raise _at("/type", f"unknown job type {kind[:64]!r}; known: {', '.join(JOB_TYPES)}")


def _at(pointer: str, detail: str, later: bool = False) -> Invalid:
    kind = NotAvailable if later else Invalid
    return kind(f"{pointer}: {detail}", errors=[FieldError(pointer=pointer, detail=detail)])


def _input(session: Session, caller: Caller, pointer: str, identifier: str) -> ModelRecord | DatasetRecord:
    """Return an input of the caller's that was not rejected."""
    row = find(session, identifier)
    if row is None or row.owner != caller.owner:
        raise _at(pointer, f"there is no {pointer.strip('/')} {identifier}")
    if row.state == ResourceState.REJECTED:
        raise _at(pointer, f"{identifier} was rejected: {(row.error or {}).get('detail', 'it cannot be used')}")
    return row


def _architecture_of(model: ModelRecord | DatasetRecord) -> Architecture | None:
    known = (model.facts or {}).get("architecture") or model.declaration.get("architecture")
    return None if known is None else Architecture.model_validate(known)


def _completed(spec: JobSpec, teacher: ModelRecord | DatasetRecord) -> JobSpec:
    """Fill in what the student takes over from its teacher."""
    if isinstance(spec.student, ShrunkStudent):
        raise _at("/student/shrink", "students shrunk from their teacher come with a later version", True)
    if not isinstance(spec.student, ArchitectureStudent):
        return spec
    declared = spec.student.architecture.completed(_architecture_of(teacher))
    architecture = compatibility.completed(declared, teacher.facts or {})  # a graph has no architecture to declare
    return spec.model_copy(update={"student": ArchitectureStudent(architecture=architecture)})


def _check_declared(spec: JobSpec, teacher: ModelRecord | DatasetRecord) -> None:
    """Compare the student with what the teacher was declared to be, which is known before inspection."""
    known = _architecture_of(teacher)
    if known is None or not isinstance(spec.student, ArchitectureStudent):
        return
    for field in ("input_shape", "num_classes"):
        expected, got = getattr(known.options, field), getattr(spec.student.architecture.options, field)
        if None not in {expected, got} and expected != got:
            shown, wanted = (list(v) if isinstance(v, tuple) else v for v in (got, expected))
            raise _at(
                f"/student/architecture/options/{field}",
                f"the student has {shown} and its teacher {wanted}; leave it out to take the teacher's",
            )


def _check_task(dataset: ModelRecord | DatasetRecord) -> None:
    task = dataset.declaration.get("task", "classification")
    if task != "classification":
        raise _at("/dataset", f"its task is {task}; distillation for it comes with a later version", True)


def _warnings(spec: JobSpec) -> tuple[str, ...]:
    objective = spec.config.objective
    found = []
    if objective.alpha == 1:
        found.append("alpha is 1: the teacher's outputs do not enter the loss")
    if objective.alpha == 0 and objective.label_smoothing > 0:
        found.append("alpha is 0: label_smoothing has no effect")
    if isinstance(spec.student, ModelStudent) and not spec.student.reset and spec.student.model == spec.teacher:
        found.append("the student starts as its own teacher")
    return tuple(found)


def resolve(session: Session, caller: Caller, spec: JobSpec) -> Resolved:
    """Return the job with its defaults filled in. Raises Invalid or NotAvailable."""
    teacher = _input(session, caller, "/teacher", spec.teacher)
    dataset = _input(session, caller, "/dataset", spec.dataset)
    inputs = [teacher, dataset]
    student = None
    if isinstance(spec.student, ModelStudent):
        student = _input(session, caller, "/student/model", spec.student.model)
        inputs.append(student)
    spec = _completed(spec, teacher)
    _check_task(dataset)
    _check_declared(spec, teacher)
    facts = [None if row is None else row.facts for row in (teacher, dataset, student)]
    compatibility.check(facts[0] or {}, facts[1] or {}, spec, facts[2])
    settled = all(row.state == ResourceState.READY for row in inputs)
    return Resolved(spec, _warnings(spec), settled)
