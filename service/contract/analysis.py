"""What a finished analysis says: a model, or two, measured from the inside and the outside, and nothing made.

Information is in nats; intervals are 95%. What stands of units is by their numbers within their group, from 0.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.contract.reports import (
    ByClass,
    ByInput,
    Comparison,
    Environment,
    Finding,
    Measures,
    StageOutcome,
)


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class UnitValue(_Data):
    """One unit's value."""

    unit: int
    value: float


class UnitValues(_Data):
    """A quantity of every unit of a group; of units that were not measured, nothing."""

    mean: float
    quantiles: dict[str, float] = Field(description="By percentage: 0, 5, 25, 50, 75, 95 and 100.")
    lowest: tuple[UnitValue, ...] = Field(description="Up to ten, the lowest first.")
    highest: tuple[UnitValue, ...] = Field(description="Up to ten, the highest first.")
    values: tuple[float | None, ...] | None = Field(
        None, description="Of every unit, to six digits; null where the report would become too long."
    )


class PairInformation(_Data):
    """I(bin(a); bin(b)) of pairs of units of one group, plug-in."""

    pairs: int = Field(description="Measured: all, or as many drawn by the job's seed.")
    possible: int = Field(description="Of units that are not dead.")
    bins: int = Field(description="Of each unit; fewer than for its entropy, since a pair has their square.")
    mean: float
    chance: float = Field(
        description="The mean that the same pairs give where each example of the one is set beside another example of "
        "the other: what unrelated units would show on as many examples."
    )
    largest: float
    most_alike: tuple[int, int] = Field(description="The pair with the largest.")


class Redundancy(_Data):
    """How far the units of a group repeat each other."""

    explained: UnitValues | None = Field(
        None,
        description="R² of each unit from the others of its group, 1 − 1/(C_uu·(C⁻¹)_uu), C their covariance where "
        "they are first read, over examples and positions; 1: the others say all that it says, linearly. Dead units "
        "are left out; null where there are too few rows to tell.",
    )
    chance: float | None = Field(
        None, description="R² that unrelated units would show on as many independent rows: (units − 1)/(rows − 1)."
    )
    rows: int = Field(description="Examples times positions; positions of one example are not independent.")
    pairs: PairInformation | None = None


class GroupActivity(_Data):
    """What the units of one dependency group say, where the first layer that mixes them reads them."""

    name: str
    kind: str
    units: int
    macs_per_unit: int = Field(description="What the whole network would save without one unit.")
    parameters_per_unit: int
    reader: str | None = Field(None, description="Where they are measured; null where no input reaches them.")
    dead: int = Field(0, description="Units that are the same for every input, at every position.")
    dead_units: tuple[int, ...] = Field((), description="Up to 100 of them.")
    entropy: UnitValues | None = Field(None, description="H(bin(activation)), in nats.")
    label_information: UnitValues | None = Field(
        None, description="I(bin(activation); label), in nats; may be slightly negative. Null without labels."
    )
    label_information_chance: float | None = Field(
        None, description="The mean that the same units give with another example's label."
    )
    redundancy: Redundancy | None = None


class Layers(_Data):
    """The inside of a model."""

    split: str = Field(description="From which the inputs were drawn.")
    examples: int
    bins: int = Field(description="Of equal width, over each unit's range.")
    estimator: Literal["miller_madow"] = Field(
        "miller_madow",
        description="Of entropy and label information. Where most cells are seen its bias is of order 1/examples²: "
        "with few examples for many bins and labels, more is left, as label_information_chance shows.",
    )
    activation: str = Field(
        "the mean of the unit over positions, one number for each input", description="What is binned."
    )
    groups: tuple[GroupActivity, ...] = Field(description="In the order of the graph.")


class GroupImportance(_Data):
    """What a criterion says of a group; high means keep."""

    scores: UnitValues | None = Field(None, description="Null where no score is finite.")
    errors: tuple[float | None, ...] | None = Field(
        None,
        description="Standard errors of the scores, where the criterion is a mean over inputs and they are listed.",
    )
    median_error: float | None = None
    removed: int = Field(description="Units that the preview removes.")
    cut: float | None = Field(None, description="The score below which it does.")
    undecided: int = Field(0, description="Units whose score is within two standard errors of the cut.")


class Preview(_Data):
    """What a pruning job would do at first sight: everything at once, nothing refitted."""

    target: float = Field(description="Fraction of the MACs that is to remain.")
    macs: int = Field(description="That would remain.")
    parameters: int
    allocation: Literal["per_mac", "uniform"] = Field(
        description="How units of different groups are compared; uniform for criteria that judge within a group alone."
    )
    removed: int = Field(description="Units that would go, of all groups.")
    share_of_score: float | None = Field(
        None, description="What they hold of the sum of all scores; null where scores have both signs."
    )
    reached: bool = Field(description="Whether the target can be reached at all.")


class Importance(_Data):
    """What a criterion says of every unit."""

    criterion: dict[str, Any] = Field(description="With its options.")
    comparable: bool = Field(description="Whether scores of different groups may be compared.")
    examples: int = Field(description="That were looked at.")
    notes: tuple[str, ...] = ()
    groups: dict[str, GroupImportance]
    preview: Preview
    reading: str = Field(description="The preview in words.")


class ModelAnalysis(_Data):
    """One model."""

    model: str
    measures: Measures = Field(description="Of its outputs, and its cost.")
    groups: int | None = Field(None, description="Of units that can be removed; null where they are not known.")
    units: int | None = None
    layers: Layers | None = None
    importance: tuple[Importance, ...] = Field((), description="In the order in which the criteria were asked for.")
    notes: tuple[str, ...] = ()


class AnalysisReport(_Data):
    """The analysis of a model, or of two."""

    kind: Literal["analysis"] = "analysis"
    job: str
    dataset: str
    split: str = Field(description="On which outputs were measured.")
    examples: int
    models: tuple[ModelAnalysis, ...]
    comparison: Comparison | None = Field(
        None, description="Of two models: the second in the student's place, the first in its teacher's."
    )
    by_class: ByClass | None = Field(None, description="Of two models, where there are labels.")
    by_input: ByInput | None = Field(None, description="Of two models.")
    environment: Environment
    stages: tuple[StageOutcome, ...] = ()
    findings: tuple[Finding, ...] = ()
