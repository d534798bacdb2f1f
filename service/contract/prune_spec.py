"""What a pruning job asks for: how small, judged by what, in which steps, and how the rest is mended."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from service.contract.catalogue import Frozen, named
from service.contract.criteria import Criterion, OutputKl
from service.contract.objectives import KdObjective, Objective
from service.contract.specs import DatasetId, Job, ModelId, Training

COSTS = ("macs", "params", "bytes", "latency")


class Absolute(Frozen):
    """A cost in its own unit: MACs of one example, parameters, bytes of the weights, seconds at batch 1."""

    absolute: float = Field(gt=0)


def _form(cost: object) -> str:
    return "absolute" if isinstance(cost, Mapping | Absolute) else "fraction"


Fraction = Annotated[float, Field(gt=0, lt=1, description="That remains.")]
Cost = Annotated[Annotated[Fraction, Tag("fraction")] | Annotated[Absolute, Tag("absolute")], Discriminator(_form)]


class Target(Frozen):
    """How small the network shall become, and what it may lose on the way.

    A cost is the fraction that remains, or {"absolute": …}. With limits alone, as much is removed as they allow.
    """

    macs: Cost | None = None
    params: Cost | None = None
    bytes: Cost | None = None
    latency: Cost | None = Field(None, description="Measured at batch 1 on the worker that runs the job.")
    max_kl: float | None = Field(None, gt=0, description="Nats from the teacher, on the validation split.")
    max_accuracy_drop: float | None = Field(
        None, ge=0, lt=1, description="Below the teacher's accuracy on the validation split; 0.01 is one point."
    )

    @model_validator(mode="after")
    def _one_cost(self) -> Self:
        costs = [name for name in COSTS if getattr(self, name) is not None]
        if len(costs) > 1:
            raise ValueError(f"give one cost, not {' and '.join(costs)}; limits may stand beside it")
        if not costs and self.max_kl is None and self.max_accuracy_drop is None:
            raise ValueError('give a cost, as {"macs": 0.25}, or a limit, as {"max_accuracy_drop": 0.01}')
        return self

    @property
    def cost(self) -> tuple[str, float | Absolute] | None:
        """The cost that is asked for, and how much of it."""
        return next(((name, cost) for name in COSTS if (cost := getattr(self, name)) is not None), None)


class OneShot(Frozen):
    """All units are judged once, and removed at once."""

    name: Literal["one_shot"]


class Stepwise(Frozen):
    """What the schedules in steps have in common."""

    step: float = Field(0.15, ge=0.01, lt=1, description="Share of the remaining cost that each step removes.")
    max_group_share: float = Field(0.3, gt=0, le=1, description="Largest share of a group that one step removes.")


class Iterative(Stepwise):
    """Units are judged again after each step; the network is mended at the end."""

    name: Literal["iterative"]


class Interleaved(Stepwise):
    """Remove a step, refit, judge the network as it is now, and again."""

    name: Literal["interleaved"] = "interleaved"


PruningSchedule = Annotated[
    Annotated[OneShot, Tag("one_shot")]
    | Annotated[Iterative, Tag("iterative")]
    | Annotated[Interleaved, Tag("interleaved")],
    named("interleaved"),
]

Allocation = Literal[
    "per_mac", "per_parameter", "per_byte", "per_millisecond", "global", "uniform", "isomorphic", "best"
]


class CalibrationOptions(Frozen):
    """The inputs on which units are judged, drawn from the training split by the job's seed."""

    examples: int = Field(512, ge=2, le=10_000_000)


class Refit(Frozen):
    """The closed-form ridge refit of every layer that read removed units."""

    examples: int = Field(2000, ge=2, le=10_000_000, description="Drawn from the training split by the job's seed.")
    ridge: float | Literal["auto"] = Field(
        "auto",
        description="λ, times the mean variance of a layer's inputs; auto tries several on held-out examples.",
    )

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if self.ridge != "auto" and not 0 < self.ridge <= 1e6:
            raise ValueError(f"ridge is auto, or a number above 0; got {self.ridge:g}")
        return self


class Recovery(Frozen):
    """Distillation from the network that the job began with, after the last removal."""

    objective: Objective = Field(default_factory=lambda: KdObjective(alpha=0.0, temperature=4.0))
    training: Training = Field(default_factory=lambda: Training(epochs=3))


class PruneConfig(Frozen):
    target: Target
    criterion: Criterion = Field(default_factory=OutputKl)
    schedule: PruningSchedule = Field(default_factory=Interleaved)
    allocation: Allocation = Field(
        "per_mac",
        description="How units of different groups are compared: by score for each MAC (parameter, byte, millisecond) "
        "that they save; by score alone (global); the same share of every group (uniform), or of all groups of the "
        "same structure (isomorphic). best tries per_mac and uniform, and keeps the nearer to the teacher.",
    )
    round_to: Literal[1, 2, 4, 8, 16, 32, 64] = Field(1, description="Units left are a multiple of this.")
    min_units: int = Field(2, ge=1, le=1_000_000, description="No group falls below this many units.")
    keep: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, max_length=10_000, description="Units that a group of this name keeps at least."
    )
    calibration: CalibrationOptions = Field(default_factory=CalibrationOptions)
    refit: Refit | None = Field(default_factory=Refit)
    fold_means: bool = Field(
        default=True,
        description="Without a refit: what removed units said on average becomes part of their readers' biases.",
    )
    recovery: Recovery | None = None
    controls: tuple[Literal["random", "l2", "taylor", "scratch"], ...] = Field(
        (),
        max_length=4,
        description="What is put beside the result at equal MACs; scratch is the same small network "
        "trained from new weights for as long as the recovery.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if "scratch" in self.controls and self.recovery is None:
            raise ValueError("the control scratch is trained as the recovery is; give a recovery, or leave it out")
        if len(set(self.controls)) != len(self.controls):
            raise ValueError("each control can be asked for once")
        return self


class PruneSpec(Job):
    """Remove the units that a network needs least."""

    type: Literal["prune"]
    model: ModelId
    dataset: DatasetId
    config: PruneConfig

    @property
    def models(self) -> tuple[str, ...]:
        """The models that the job reads."""
        return (self.model,)
