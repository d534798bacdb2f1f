"""Routes that tell what can be asked for: names, and JSON Schemas of their options."""

from functools import cache
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from service.api.deps import Reader
from service.contract.catalogue import ARCHITECTURES, Frozen
from service.contract.criteria import CRITERIA
from service.contract.objectives import OBJECTIVES, LabelKind

router = APIRouter(prefix="/v1", tags=["catalogue"])


class Entry(BaseModel):
    """Something that can be asked for by name."""

    name: str
    summary: str
    source: str = Field(description="Where it was published.")
    options: dict[str, Any] = Field(description="JSON Schema of its options.")


class ObjectiveEntry(Entry):
    """An objective of distillation."""

    formula: str = Field(description="s, t: logits of student and teacher; p, q: teacher's and student's outputs at T.")
    needs_labels: bool = Field(description="Whether it cannot do without labels, whatever its options.")
    task: LabelKind = Field(description="What its labels are.")
    presets: dict[str, dict[str, Any]] = Field(description="Named sets of options.")


class CriterionEntry(Entry):
    """A pruning criterion; a high score means keep."""

    formula: str = Field(description="p is the output, p_i the output without unit i.")
    cost: str = Field(description="What it takes.")
    comparable: bool = Field(description="Whether scores can be ranked across layers.")
    needs_labels: bool
    needs_inputs: bool = Field(description="Whether it looks at calibration inputs.")


class Criteria(BaseModel):
    """All criteria; there is one page."""

    items: list[CriterionEntry]
    next_page_token: None = None


class Catalogue(BaseModel):
    """All entries; there is one page."""

    items: list[Entry]
    next_page_token: None = None


class Objectives(BaseModel):
    """All objectives; there is one page."""

    items: list[ObjectiveEntry]
    next_page_token: None = None


def _entry(name: str, options: type[Frozen]) -> dict[str, Any]:
    return {
        "name": name,
        "summary": getattr(options, "summary", ""),
        "source": getattr(options, "source", ""),
        "options": options.model_json_schema(),
    }


@cache
def _architectures() -> Catalogue:
    return Catalogue(items=[Entry(**_entry(name, options)) for name, options in ARCHITECTURES.items()])


@cache
def _criteria() -> Criteria:
    own = ("formula", "cost", "comparable", "needs_labels", "needs_inputs")
    entries = [
        CriterionEntry(**_entry(name, options), **{field: getattr(options, field) for field in own})
        for name, options in CRITERIA.items()
    ]
    return Criteria(items=entries)


@cache
def _objectives() -> Objectives:
    own = ("formula", "needs_labels", "task", "presets")
    entries = [
        ObjectiveEntry(**_entry(name, options), **{field: getattr(options, field) for field in own})
        for name, options in OBJECTIVES.items()
    ]
    return Objectives(items=entries)


@router.get("/architectures")
def list_architectures(_: Reader) -> Catalogue:
    """List the built-in architectures."""
    return _architectures()


@router.get("/criteria")
def list_criteria(_: Reader) -> Criteria:
    """List the criteria by which pruning judges units."""
    return _criteria()


@router.get("/objectives")
def list_objectives(_: Reader) -> Objectives:
    """List the objectives of distillation."""
    return _objectives()
