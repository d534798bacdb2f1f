"""Routes that tell what can be asked for: names, and JSON Schemas of their options."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from service.api.deps import Reader
from service.contract.catalogue import ARCHITECTURES, CRITERIA, OBJECTIVES, PRESETS, Frozen

router = APIRouter(prefix="/v1", tags=["catalogue"])


class Entry(BaseModel):
    """Something that can be asked for by name."""

    name: str
    summary: str
    source: str = Field(description="Where it was published.")
    options: dict[str, Any] = Field(description="JSON Schema of its options.")


class ObjectiveEntry(Entry):
    """An objective."""

    presets: dict[str, dict[str, Any]] = Field(description="Named sets of options.")


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
def _catalogue(kind: str) -> Catalogue:
    tables: Mapping[str, Mapping[str, type[Frozen]]] = {"architectures": ARCHITECTURES, "criteria": CRITERIA}
    return Catalogue(items=[Entry(**_entry(name, options)) for name, options in tables[kind].items()])


@router.get("/architectures")
def list_architectures(_: Reader) -> Catalogue:
    """List the built-in architectures."""
    return _catalogue("architectures")


@router.get("/criteria")
def list_criteria(_: Reader) -> Catalogue:
    """List the pruning criteria; there are none before pruning jobs come."""
    return _catalogue("criteria")


@router.get("/objectives")
def list_objectives(_: Reader) -> Objectives:
    """List the objectives of distillation."""
    entries = [
        ObjectiveEntry(**_entry(name, options), presets={preset: dict(values) for preset, values in PRESETS.items()})
        for name, options in OBJECTIVES.items()
    ]
    return Objectives(items=entries)
