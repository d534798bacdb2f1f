"""What an analysis asks for: one model or two, a dataset, and which of their measures."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from service.contract.catalogue import Frozen
from service.contract.criteria import CRITERIA, Criterion, OutputKl
from service.contract.prune_spec import CalibrationOptions
from service.contract.specs import DatasetId, Job, ModelId

# A name alone stands for the criterion with its defaults.
CriterionName = Annotated[str, Field(json_schema_extra={"enum": list(CRITERIA)})]


def _with_name(asked: Any) -> Any:
    return {"name": asked} if isinstance(asked, str) else asked


NamedCriterion = Annotated[Criterion, BeforeValidator(_with_name, json_schema_input_type=CriterionName | Criterion)]


class AnalyzeConfig(Frozen):
    criteria: tuple[NamedCriterion, ...] = Field(
        (OutputKl(),),
        max_length=13,
        description="What judges each unit, by name or with options, as in a pruning job; none: no unit is judged.",
    )
    layers: bool = Field(
        default=True,
        description="Measure each group of units: entropy, label information and redundancy of their activations.",
    )
    bins: int = Field(
        16,
        ge=2,
        le=4096,
        description="Equal-width bins over each unit's range, for layers. More bins need more examples: beside what is "
        "biased by too few stands what chance gives.",
    )
    calibration: CalibrationOptions = Field(
        default_factory=CalibrationOptions,
        description="The inputs on which layers are measured and units judged, drawn from the training split.",
    )
    split: Literal["test", "validation", "train"] = Field(
        "test", description="Whose inputs the outputs are measured on."
    )

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        for place, criterion in enumerate(self.criteria):
            if criterion in self.criteria[:place]:
                raise ValueError(f"criteria has {criterion.name} twice with the same options; name it once")
        return self


class AnalyzeSpec(Job):
    """Measure a model, or two against each other, without making one."""

    type: Literal["analyze"]
    models: tuple[ModelId, ...] = Field(
        min_length=1, max_length=2, description="One, or two that are compared: the first stands as the teacher."
    )
    dataset: DatasetId
    config: AnalyzeConfig = Field(default_factory=AnalyzeConfig)

    @model_validator(mode="after")
    def _two_different(self) -> Self:
        if len(set(self.models)) < len(self.models):
            raise ValueError(f"models names {self.models[0]} twice; name two models to compare, or one")
        return self
