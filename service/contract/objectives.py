"""The objectives that a student can be trained on, each with its options.

An objective has a hard term, the distance to the labels, and a soft one, the distance to the teacher. s and t are
the logits of student and teacher, y the labels, p = softmax(t/T), q = softmax(s/T), CE the cross-entropy of the
student's outputs at temperature 1. Every tempered term is multiplied by T², so that its gradient does not vanish
as T grows. Terms are in nats, averaged over the batch.

α and T may change over the training; see `service.contract.ramps`.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, Tag, model_validator

from service.contract.catalogue import Frozen, named
from service.contract.ramps import ChangingShare, ChangingTemperature, Ramp, bounds

LabelKind = Literal["classification", "multilabel", "regression"]
Weight = Annotated[float, Field(ge=0, le=1e6)]


class ObjectiveOptions(Frozen):
    """What every objective says of itself; `preset` sets what is not given."""

    summary: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs_labels: ClassVar[bool] = False
    task: ClassVar[LabelKind] = "classification"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(preset := data.get("preset"), str):
            return {**cls.presets.get(preset, {}), **data}
        return data

    @property
    @abstractmethod
    def uses_labels(self) -> bool:
        """Whether the loss reads labels, with these options."""

    @property
    @abstractmethod
    def uses_teacher(self) -> bool:
        """Whether the loss reads the teacher's outputs, with these options."""

    @property
    @abstractmethod
    def without_labels(self) -> tuple[str, str]:
        """The option that makes the loss read labels, and what to set it to where there are none."""

    def doubts(self, num_epochs: int) -> tuple[str, ...]:  # noqa: ARG002  some objectives look at it
        """What looks like a mistake in a training of so many epochs."""
        return () if self.uses_teacher else ("the objective gives the teacher's outputs no weight",)


class BalancedObjective(ObjectiveOptions):
    """α times a hard term, and 1 − α times a soft one."""

    alpha: ChangingShare = Field(
        0.5,
        description="Weight of the hard labels; 0 for unlabelled data. "
        'A number, or {"from": 0.9, "to": 0.1, "shape": "cosine"}.',
    )

    @property
    def uses_labels(self) -> bool:
        """Whether the loss reads labels: whether α is ever above 0."""
        return bounds(self.alpha)[1] > 0

    @property
    def uses_teacher(self) -> bool:
        """Whether the loss reads the teacher's outputs: whether α is ever below 1."""
        return bounds(self.alpha)[0] < 1

    @property
    def without_labels(self) -> tuple[str, str]:
        """α, to be 0."""
        alpha = self.alpha
        shown = f"goes from {alpha.start:g} to {alpha.stop:g}" if isinstance(alpha, Ramp) else f"is {alpha:g}"
        return "alpha", f"alpha {shown} and the dataset has no labels; use alpha 0"

    def doubts(self, num_epochs: int) -> tuple[str, ...]:  # noqa: ARG002  as its base
        """α of 1 throughout, and smoothing without a hard term."""
        found = [] if self.uses_teacher else ["alpha is 1: the teacher's outputs do not enter the loss"]
        if not self.uses_labels and getattr(self, "label_smoothing", 0) > 0:
            found.append("alpha is 0: label_smoothing has no effect")
        return tuple(found)


Smoothing = Annotated[
    float, Field(ge=0, lt=1, description="Uniform share in the hard targets, over all classes (Szegedy et al. 2016).")
]
Standardize = Annotated[
    bool,
    Field(
        description="Z-score each row of both networks' logits in the soft term, before the temperature, so that the "
        "student need not match the size of its teacher's logits (Sun et al. 2024)."
    ),
]


class KdObjective(BalancedObjective):
    summary = "Hinton's distillation: hard labels and the teacher's tempered outputs. The default."
    formula = "weight · (α · CE(y, s) + (1 − α) · T² · KL(p ‖ q)); or KL(q ‖ p), or β KL(p ‖ m) + (1 − β) KL(q ‖ m)"
    source = (
        "Hinton, Vinyals and Dean 2015; reverse KL and generalised Jensen-Shannon, m = βp + (1 − β)q, as in Agarwal "
        "et al. 2024; standardised as in Sun et al. 2024"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar100": {"temperature": 4.0, "alpha": 0.1},
        "cifar100_standardized": {"temperature": 2.0, "alpha": 0.1, "standardize": True, "weight": 10.0},
    }

    name: Literal["kd"] = "kd"
    temperature: ChangingTemperature = Field(
        3.0, description='T; softens both distributions. A number, or {"from": 8, "to": 2, "shape": "linear"}.'
    )
    label_smoothing: Smoothing = 0.0
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = Field(
        "forward_kl",
        description="Of the soft term. forward_kl covers all that the teacher holds possible; reverse_kl avoids what "
        "it excludes; jensen_shannon is between them.",
    )
    beta: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="The teacher's share of the mixture in jensen_shannon; near 0 it is like forward_kl, near 1 like "
        "reverse_kl, each scaled down by the smaller share.",
    )
    standardize: Standardize = False
    weight: Weight = Field(1.0, gt=0, description="Multiplies the whole loss, as a learning rate of plain SGD would.")
    preset: Literal["cifar100", "cifar100_standardized"] | None = None

    def doubts(self, num_epochs: int) -> tuple[str, ...]:
        """Options that have no effect."""
        found = super().doubts(num_epochs)
        if self.beta != type(self).model_fields["beta"].default and self.divergence != "jensen_shannon":
            return *found, f"beta belongs to jensen_shannon and has no effect on {self.divergence}"
        return found


class HardTerm(ObjectiveOptions):
    """A cross-entropy with a weight of its own, beside soft terms with theirs."""

    hard_weight: Weight = Field(1.0, description="Of the cross-entropy with the labels.")
    label_smoothing: Smoothing = 0.0

    @model_validator(mode="after")
    def _something_is_asked(self) -> Self:
        if self.hard_weight == 0 and not self.uses_teacher:
            raise ValueError("every weight is 0, so that there is nothing to learn; give one of them a weight")
        return self


class DecoupledObjective(HardTerm):
    summary = "Decoupled distillation: the target class against the rest, and the rest among themselves, weighed apart."
    formula = (
        "hard_weight · CE(y, s) + min(epoch / warmup_epochs, 1) · T² · (target_weight · KL(b_t ‖ b_s) + "
        "non_target_weight · KL(p̂ ‖ q̂)), b = (p_y, 1 − p_y), p̂ and q̂ over the classes other than y; epoch from 1"
    )
    source = "Zhao et al. 2022, equation 7; warm-up as in the authors' code"
    needs_labels = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar100": {"temperature": 4.0, "target_weight": 1.0, "non_target_weight": 8.0, "warmup_epochs": 20}
    }

    name: Literal["dkd"]
    temperature: ChangingTemperature = Field(4.0, description="T; softens both distributions.")
    target_weight: Weight = Field(1.0, description="The paper's α, of the target class against the rest.")
    non_target_weight: Weight = Field(8.0, description="The paper's β, of the other classes among themselves.")
    warmup_epochs: int = Field(20, ge=0, le=100_000, description="Epochs until the soft terms have their full weight.")
    standardize: Standardize = False
    preset: Literal["cifar100"] | None = None

    @property
    def uses_labels(self) -> bool:
        """Always: they say which class is the target."""
        return True

    @property
    def uses_teacher(self) -> bool:
        """Whether a soft term has weight."""
        return self.target_weight > 0 or self.non_target_weight > 0

    @property
    def without_labels(self) -> tuple[str, str]:
        """Another objective."""
        return "name", "dkd needs labels and the dataset has none; use kd with alpha 0"

    def doubts(self, num_epochs: int) -> tuple[str, ...]:
        """A warm-up that never ends."""
        found = super().doubts(num_epochs)
        if self.uses_teacher and self.warmup_epochs > num_epochs:
            reached = num_epochs / self.warmup_epochs
            text = f"warmup_epochs ({self.warmup_epochs}) is longer than the training ({num_epochs} epochs)"
            return *found, f"{text}: the teacher reaches {reached:.0%} of its weight"
        return found


class RelationalObjective(HardTerm):
    summary = "DIST: the student's outputs need only correlate with its teacher's, over classes and over examples."
    formula = (
        "hard_weight · CE(y, s) + T² · (inter_weight · mean over rows of (1 − r(q, p)) + "
        "intra_weight · mean over columns of (1 − r(q, p))), r Pearson's correlation"
    )
    source = "Huang et al. 2022 (DIST); weights and temperatures of the authors' ImageNet and CIFAR-100 settings"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "imagenet": {"temperature": 1.0, "inter_weight": 2.0, "intra_weight": 2.0},
        "cifar100": {"temperature": 4.0, "inter_weight": 2.0, "intra_weight": 2.0},
    }

    name: Literal["dist"]
    temperature: ChangingTemperature = Field(1.0, description="T, the paper's τ; softens both distributions.")
    inter_weight: Weight = Field(2.0, description="The paper's β, of the correlation over the classes of an example.")
    intra_weight: Weight = Field(2.0, description="The paper's γ, of the correlation over the examples of a batch.")
    standardize: Standardize = False
    preset: Literal["imagenet", "cifar100"] | None = None

    @property
    def uses_labels(self) -> bool:
        """Whether the cross-entropy has weight."""
        return self.hard_weight > 0

    @property
    def uses_teacher(self) -> bool:
        """Whether a correlation has weight."""
        return self.inter_weight > 0 or self.intra_weight > 0

    @property
    def without_labels(self) -> tuple[str, str]:
        """The cross-entropy's weight, to be 0."""
        detail = f"hard_weight is {self.hard_weight:g} and the dataset has no labels; use hard_weight 0"
        return "hard_weight", detail


class BernoulliObjective(BalancedObjective):
    summary = "For networks whose outputs are independent labels: each output a yes or no of its own."
    formula = "α · Σ_k BCE(y_k, s_k) + (1 − α) · T² · Σ_k KL(Bernoulli(σ(t_k/T)) ‖ Bernoulli(σ(s_k/T)))"
    source = "Yang et al. 2023 (multi-label logits distillation)"
    task = "multilabel"

    name: Literal["bernoulli"]
    temperature: ChangingTemperature = Field(1.0, description="T; softens both distributions.")


class SquaredErrorObjective(BalancedObjective):
    summary = "For outputs that are numbers: the squared distance to the labels, and to the teacher's outputs."
    formula = "α · mean_k (y_k − s_k)² + (1 − α) · mean_k (t_k − s_k)²"
    source = "Ba and Caruana 2014, who match a classifier's logits so"
    task = "regression"

    name: Literal["mse"]


Objective = Annotated[
    Annotated[KdObjective, Tag("kd")]
    | Annotated[DecoupledObjective, Tag("dkd")]
    | Annotated[RelationalObjective, Tag("dist")]
    | Annotated[BernoulliObjective, Tag("bernoulli")]
    | Annotated[SquaredErrorObjective, Tag("mse")],
    named("kd"),
]
OBJECTIVES: Mapping[str, type[ObjectiveOptions]] = {
    "kd": KdObjective,
    "dkd": DecoupledObjective,
    "dist": RelationalObjective,
    "bernoulli": BernoulliObjective,
    "mse": SquaredErrorObjective,
}
