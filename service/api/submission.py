"""From a request for a job to a resolved spec: known inputs, nothing left open that is known by now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from service.contract import compatibility, reach
from service.contract.analyze_spec import AnalyzeSpec
from service.contract.criteria import CRITERIA, OutputEntropy
from service.contract.errors import FieldError, Invalid, NotAvailable
from service.contract.job_spec import JOB_TYPES, JobSpec
from service.contract.prune_spec import PruneSpec
from service.contract.records import DatasetRecord, ModelRecord, ResourceState
from service.contract.resources import find
from service.contract.specs import Architecture, ArchitectureStudent, DistillSpec, ModelStudent, ShrunkStudent
from service.keys import Caller


@dataclass(frozen=True)
class Reach:
    """How far pruning can take the model; nothing of it for other jobs."""

    reachable: bool | None = True  # None where only a worker can tell
    obstacle: str | None = None
    pointer: str = ""  # to what asks for it
    floor: dict[str, float] | None = None
    pinned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Resolved:
    """A job that can be accepted."""

    spec: JobSpec
    warnings: tuple[str, ...]
    settled: bool  # whether every input has been inspected
    reach: Reach = Reach()


def check_type(body: Any) -> None:
    """Judge the job's type before its other fields, whose meaning depends on it. Raises Invalid."""
    kind = body.get("type") if isinstance(body, Mapping) else None
    if not isinstance(kind, str) or kind in JOB_TYPES:
        return
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


def _completed(spec: DistillSpec, teacher: ModelRecord | DatasetRecord) -> DistillSpec:
    """Fill in what the student takes over from its teacher."""
    if not isinstance(spec.student, ArchitectureStudent):
        return spec
    declared = spec.student.architecture.completed(_architecture_of(teacher))
    architecture = compatibility.completed(declared, teacher.facts or {})  # a graph has no architecture to declare
    return spec.model_copy(update={"student": ArchitectureStudent(architecture=architecture)})


def _check_declared(spec: DistillSpec, teacher: ModelRecord | DatasetRecord) -> None:
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
        raise _at("/dataset", f"its task is {task}; jobs for it come with a later version", True)


def _warnings(spec: DistillSpec) -> tuple[str, ...]:
    found = list(spec.config.objective.doubts(spec.config.training.epochs))
    if isinstance(spec.student, ModelStudent) and not spec.student.reset and spec.student.model == spec.teacher:
        found.append("the student starts as its own teacher")
    return tuple(found)


def resolve(session: Session, caller: Caller, spec: JobSpec) -> Resolved:
    """Return the job with its defaults filled in. Raises Invalid or NotAvailable."""
    if isinstance(spec, AnalyzeSpec):
        return _resolve_analysis(session, caller, spec)
    return _resolve_pruning(session, caller, spec) if isinstance(spec, PruneSpec) else _resolve(session, caller, spec)


def _resolve(session: Session, caller: Caller, spec: DistillSpec) -> Resolved:
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
    found = Reach()
    if isinstance(spec.student, ShrunkStudent):
        config = {"target": dict(spec.student.shrink)}
        shrinking = PruneSpec.model_validate(
            {"type": "prune", "model": spec.teacher, "dataset": spec.dataset, "config": config}
        )
        found = _reach(shrinking, facts[0] or {}, "/student/shrink")
    return Resolved(spec, _warnings(spec), _settled(inputs), found)


def demand_reach(resolved: Resolved) -> None:
    """Raise Invalid where the target cannot be met, by what is known of the model."""
    if resolved.reach.obstacle is not None:
        raise _at(resolved.reach.pointer, resolved.reach.obstacle)


def _settled(inputs: Sequence[ModelRecord | DatasetRecord]) -> bool:
    return all(row.state == ResourceState.READY for row in inputs)


def _resolve_pruning(session: Session, caller: Caller, spec: PruneSpec) -> Resolved:
    model = _input(session, caller, "/model", spec.model)
    dataset = _input(session, caller, "/dataset", spec.dataset)
    _check_task(dataset)
    facts = model.facts or {}
    compatibility.check_pruning(facts, dataset.facts or {}, spec)
    return Resolved(spec, _doubts(spec), _settled([model, dataset]), _reach(spec, facts, "/config/target"))


def _reach(spec: PruneSpec, facts: Mapping[str, Any], pointer: str) -> Reach:
    asked = spec.config.target.cost
    return Reach(
        reachable=reach.reachable(spec, facts),
        obstacle=reach.obstacle(spec, facts),
        pointer=pointer if asked is None else f"{pointer}/{asked[0]}",
        floor=reach.floor(spec, facts),
        pinned=tuple(reach.pinned(facts)),
    )


def _resolve_analysis(session: Session, caller: Caller, spec: AnalyzeSpec) -> Resolved:
    models = [_input(session, caller, f"/models/{place}", model) for place, model in enumerate(spec.models)]
    dataset = _input(session, caller, "/dataset", spec.dataset)
    _check_task(dataset)
    compatibility.check_analysis([model.facts or {} for model in models], dataset.facts or {}, spec)
    return Resolved(spec, _unknown_units(spec, models), _settled([*models, dataset]))


def _unknown_units(spec: AnalyzeSpec, models: Sequence[ModelRecord | DatasetRecord]) -> tuple[str, ...]:
    """Warn of models of which inspection found no units: only their outputs can be measured."""
    if not (spec.config.layers or spec.config.criteria):
        return ()
    unknown = [model.id for model in models if model.facts and model.facts.get("units", ()) is None]
    return tuple(f"the units of {each} are not known; only its outputs will be measured" for each in unknown)


def _doubts(spec: PruneSpec) -> tuple[str, ...]:
    """What a pruning job is warned of."""
    config, found = spec.config, []
    criterion = config.criterion
    if isinstance(criterion, OutputEntropy) and criterion.reading == "predictive" and not criterion.absolute:
        found.append(
            "output_entropy, predictive and literal: a useful unit makes the network surer, so that its score is "
            "negative, and the best units go first; the report shows the measured sign. output_kl keeps its sign"
        )
    elif isinstance(criterion, OutputEntropy) and criterion.reading == "marginal":
        found.append("output_entropy, marginal: close to log K on balanced data whatever goes; it sees little")
    if not CRITERIA[criterion.name].comparable and config.allocation not in ("uniform", "isomorphic"):
        found.append(f"{criterion.name} reads one layer alone and is ranked within it: every group loses its share")
    if config.refit is None and config.recovery is None and not config.fold_means:
        found.append("neither refit nor recovery: the network stays as the removal leaves it")
    if config.recovery is not None:
        found += config.recovery.objective.doubts(config.recovery.training.epochs)
    return tuple(found)
