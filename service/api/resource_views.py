"""Models and datasets as they are shown: pure functions of their rows."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.errors import Problem, stored_problem
from service.api.times import Timestamp, rfc3339
from service.contract.records import DatasetRecord, ModelRecord
from service.contract.storage import StoredFile

State = Literal["inspecting", "ready", "rejected"]


class FileView(BaseModel):
    """One file."""

    path: str
    size: int = Field(description="In bytes.")
    sha256: str
    url: str


class Lineage(BaseModel):
    """Where a model comes from."""

    job_id: str


class Tensor(BaseModel):
    """One input or output of a model."""

    model_config = ConfigDict(extra="allow")

    name: str
    shape: list[int | str] = Field(description='The first axis is "batch".')
    dtype: str | None = None


class ResourceView(BaseModel):
    """What models and datasets share."""

    model_config = ConfigDict(extra="allow")

    id: str
    name: str
    state: State
    error: Problem | None = Field(description="Why it was rejected.")
    created_at: Timestamp
    labels: dict[str, str]
    files: list[FileView]
    links: dict[str, str]
    bytes: int | None = Field(None, description="Size of the weights or of the decoded arrays.")


class UnitGroup(BaseModel):
    """Units of one kind, any of which can be removed; what one carries is what the network saves without it."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(description="Of the module that makes them; `keep` of a pruning job takes it.")
    kind: str = Field(description="channels; heads of an attention; or head width, the channels inside its heads.")
    units: int = Field(description="How many there are.")
    parameters_per_unit: int
    macs_per_unit: int = Field(description="Of one example.")
    bytes_per_unit: int = Field(description="Of parameters and buffers.")
    statistics: bool = Field(description="Whether a norm takes means over them, and later over those that remain.")
    tensors: list[str] = Field(description="The first few parameters and buffers that lose something with a unit.")
    tensors_left_out: int = Field(description="How many more there are.")


class PinnedChannels(BaseModel):
    """Channels that one operator keeps from being removed."""

    model_config = ConfigDict(extra="allow")

    operator: str
    node: str = Field(description="Which call of it, by its name in the graph.")
    reason: str
    channels: int
    tensors: list[str] = Field(description="The first few parameters and buffers whose channels they are.")
    tensors_left_out: int = Field(description="How many more there are.")


class Floor(BaseModel):
    """The network with every group cut down to two units: no pruning goes further."""

    parameters: int
    macs: int
    bytes: int


class Units(BaseModel):
    """What can be pruned, in the order of the network, and what cannot."""

    model_config = ConfigDict(extra="allow")

    groups: list[UnitGroup] = Field(description="Left out of lists of models, and from where they grow too long.")
    groups_left_out: int
    pinned: list[PinnedChannels] = Field(description="Left out likewise.")
    pinned_left_out: int
    floor: Floor = Field(description="Exact, whatever is left out.")


class ModelView(ResourceView):
    """A model; what inspection found is null until it is ready."""

    architecture: dict[str, Any] | None = None
    lineage: Lineage | None = Field(None, description="The job that made it, if one did.")
    format: str | None = None
    parameters: int | None = None
    macs: int | None = Field(None, description="Multiply-accumulates for one example.")
    inputs: list[Tensor] | None = None
    outputs: list[Tensor] | None = None
    units: Units | None = Field(
        None, description="What can be pruned; null where that is not known, and notes say why."
    )
    notes: list[str] | None = Field(None, description="What inspection met that its owner should know.")


class DatasetView(ResourceView):
    """A dataset; what inspection found is null until it is ready."""

    task: str | None = None
    splits: dict[str, int] | None = Field(None, description="Examples of each split.")
    input_shape: list[int] | None = None
    dtype: str | None = None
    num_classes: int | None = None
    class_counts: dict[str, list[int]] | None = None
    range: list[float] | None = None
    labelled: bool | None = None
    scaling: dict[str, Any] | None = None
    division: dict[str, Any] | None = None
    transform: dict[str, Any] | None = None


class ModelPage(BaseModel):
    """Models, newest first."""

    items: list[ModelView]
    next_page_token: str | None


class DatasetPage(BaseModel):
    """Datasets, newest first."""

    items: list[DatasetView]
    next_page_token: str | None


def _shared(row: ModelRecord | DatasetRecord, files: Mapping[str, StoredFile], kind: str) -> dict[str, Any]:
    base = f"/v1/{kind}/{row.id}"
    shown = [
        FileView(path=path, size=file.size, sha256=file.sha256, url=f"{base}/files/{path}")
        for path, file in files.items()
    ]
    return {
        **(row.facts or {}),
        "id": row.id,
        "name": row.name,
        "state": row.state,
        "error": stored_problem(row.error),
        "created_at": rfc3339(row.created_at),
        "labels": row.labels,
        "files": shown,
        "links": {"self": base, "archive": f"{base}/archive"},
    }


def model_view(row: ModelRecord, files: Mapping[str, StoredFile]) -> ModelView:
    """Return a model as it is shown."""
    shown = _shared(row, files, "models")
    shown["architecture"] = shown.get("architecture") or row.declaration.get("architecture")
    if row.lineage_job_id is not None:
        shown["lineage"] = Lineage(job_id=row.lineage_job_id)
        shown["links"]["job"] = f"/v1/jobs/{row.lineage_job_id}"
    return ModelView(**shown)


def listed_model_view(row: ModelRecord, files: Mapping[str, StoredFile]) -> ModelView:
    """Return a model as lists show it: how many groups of units there are, and not which."""
    view = model_view(row, files)
    if view.units is None:
        return view
    hidden = {
        "groups": [],
        "groups_left_out": view.units.groups_left_out + len(view.units.groups),
        "pinned": [],
        "pinned_left_out": view.units.pinned_left_out + len(view.units.pinned),
    }
    return view.model_copy(update={"units": view.units.model_copy(update=hidden)})


def dataset_view(row: DatasetRecord, files: Mapping[str, StoredFile]) -> DatasetView:
    """Return a dataset as it is shown."""
    shown = _shared(row, files, "datasets")
    shown.setdefault("task", row.declaration.get("task"))
    shown["transform"] = row.declaration.get("transform")
    return DatasetView(**shown)
