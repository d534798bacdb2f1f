"""What a user asks for: declarations of models and datasets, and jobs, a discriminated union on `type`.

Specs are frozen and refuse unknown fields. Where a field is left out its default is filled in, so
that what is stored is the resolved request.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    SerializeAsAny,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from service.contract.catalogue import ARCHITECTURES, ArchitectureOptions, Frozen, named
from service.contract.objectives import KdObjective, Objective

LABEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$"
Label = Annotated[str, Field(pattern=LABEL_PATTERN)]
LabelValue = Annotated[str, Field(max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")]  # PostgreSQL searches no NUL
Labels = Annotated[dict[Label, LabelValue], Field(max_length=32)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
Id = Annotated[str, Field(pattern=r"^[a-z]{3}_[0-9a-z]{26}$")]
UploadId = Annotated[str, Field(pattern=r"^upl_[0-9a-z]{26}$", examples=["upl_01ktcz5vwm9j6p2n4qe8rhsxtb"])]
ModelId = Annotated[str, Field(pattern=r"^mdl_[0-9a-z]{26}$", examples=["mdl_01ktcz5vwm9j6p2n4qe8rhsxtb"])]
DatasetId = Annotated[str, Field(pattern=r"^dat_[0-9a-z]{26}$", examples=["dat_01ktcz5vwm9j6p2n4qe8rhsxtb"])]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", examples=["model.safetensors"])]
FileSource = Annotated[
    str,
    Field(
        pattern=r"^(upl_[0-9a-z]{26}|(mdl|dat)_[0-9a-z]{26}/[A-Za-z0-9][A-Za-z0-9._-]{0,127})$",
        description="An upload, or a file of another model or dataset: mdl_…/step-003.pt2.",
        examples=["upl_01ktcz5vwm9j6p2n4qe8rhsxtb"],
    ),
]
Files = Annotated[dict[FileName, FileSource], Field(min_length=1, max_length=16)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Architecture(Frozen):
    """A built-in architecture by name, with its options."""

    name: str = Field(examples=["resnet8"])
    options: SerializeAsAny[ArchitectureOptions] = Field(
        default_factory=ArchitectureOptions, validate_default=True, examples=[{}]
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ARCHITECTURES:
            raise ValueError(f"unknown architecture {name!r}; known: {', '.join(ARCHITECTURES)}")
        return name

    @field_validator("options", mode="before")
    @classmethod
    def _options_of_name(cls, options: Any, info: ValidationInfo) -> Any:
        kind = ARCHITECTURES.get(info.data.get("name", ""), ArchitectureOptions)
        given = options.model_dump(exclude_unset=True) if isinstance(options, ArchitectureOptions) else options
        return kind.model_validate(given)

    def completed(self, teacher: "Architecture | None") -> "Architecture":
        """Return this architecture with a missing input shape and number of classes taken from `teacher`."""
        return self if teacher is None else self.filled(teacher.options.input_shape, teacher.options.num_classes)

    def filled(self, input_shape: tuple[int, ...] | None, num_classes: int | None) -> "Architecture":
        """Return this architecture with what it leaves open, where it is known."""
        known = {"input_shape": input_shape, "num_classes": num_classes}
        inherited = {
            field: value for field, value in known.items() if getattr(self.options, field) is None and value is not None
        }
        return Architecture(name=self.name, options=self.options.model_copy(update=inherited))


class ModelDeclaration(Frozen):
    """`POST /v1/models`: uploaded files by the names that say their role."""

    name: Name = Field(examples=["teacher"])
    files: Files = Field(examples=[{"model.safetensors": "upl_01ktcz5vwm9j6p2n4qe8rhsxtb"}])
    architecture: Architecture | None = None
    labels: Labels = Field(default_factory=dict)


class Splits(Frozen):
    """How a dataset of one split is divided: fractions of the examples, by seed."""

    validation: Fraction = 0.1
    test: Fraction = 0.2
    seed: Seed = 0
    stratify: bool = Field(True, description="Keep each class's share in each split.")

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must leave something to train on (sum below 1)")
        return self


class Normalization(Frozen):
    """Per channel: (x - mean) / std, after integer images were scaled by 1/255."""

    mean: tuple[float, ...] = Field(min_length=1, max_length=4096, examples=[[0.13]])
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1, max_length=4096, examples=[[0.31]])

    @model_validator(mode="after")
    def _same_channels(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} entries and std has {len(self.std)}; give one per channel")
        return self


class Transform(Frozen):
    """What is done to each input before a model sees it."""

    normalize: Literal["auto"] | Normalization | None = Field(
        None, description='"auto" takes mean and standard deviation per channel from the training split.'
    )


Task = Literal["classification", "multilabel", "regression", "vae"]


class DatasetDeclaration(Frozen):
    """`POST /v1/datasets`."""

    name: Name = Field(examples=["digits"])
    files: Files = Field(examples=[{"data.npz": "upl_01ktcz5vwm9j6p2n4qe8rhsxtb"}])
    splits: Splits | None = Field(None, description="For files of one split; left out, the defaults are used.")
    transform: Transform = Field(default_factory=Transform)
    task: Task = "classification"
    labels: Labels = Field(default_factory=dict)


class AdamW(Frozen):
    """Loshchilov and Hutter 2019."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(0.001, gt=0, le=100)
    weight_decay: float = Field(0.01, ge=0, le=100)
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)


class SGD(Frozen):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    lr: float = Field(0.05, gt=0, le=100)
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: float = Field(0.0005, ge=0, le=100)

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


Optimizer = Annotated[Annotated[AdamW, Tag("adamw")] | Annotated[SGD, Tag("sgd")], named("adamw")]


class Cosine(Frozen):
    """From lr down to `floor` times lr along half a cosine, after a linear warm-up; per step."""

    name: Literal["cosine"] = "cosine"
    warmup_epochs: float = Field(0.0, ge=0)
    floor: float = Field(0.0, ge=0, le=1)


class Step(Frozen):
    """lr times `gamma` at each milestone (in epochs), after a linear warm-up; per step."""

    name: Literal["step"]
    milestones: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1, max_length=100)
    gamma: float = Field(0.1, gt=0, le=1)
    warmup_epochs: float = Field(0.0, ge=0)


class Constant(Frozen):
    """The same lr throughout, after a linear warm-up."""

    name: Literal["constant"]
    warmup_epochs: float = Field(0.0, ge=0)


Schedule = Annotated[
    Annotated[Cosine, Tag("cosine")] | Annotated[Step, Tag("step")] | Annotated[Constant, Tag("constant")],
    named("cosine"),
]


class EarlyStopping(Frozen):
    """Stop when the validation quantity has not improved by `min_delta` for `patience` epochs."""

    patience: int = Field(5, ge=1, le=100_000)
    min_delta: float = Field(0.0, ge=0)
    monitor: Literal["loss", "accuracy"] = "loss"


class Training(Frozen):
    """How a network is trained."""

    epochs: int = Field(30, ge=1, le=100_000)
    batch_size: int = Field(128, ge=1, le=1_000_000)
    optimizer: Optimizer = Field(default_factory=AdamW)
    schedule: Schedule = Field(default_factory=Cosine)
    gradient_clip: float | None = Field(None, gt=0, description="Largest L2 norm of the gradient.")
    early_stopping: EarlyStopping | None = None
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on GPUs that have it, else float32."
    )
    select: Literal["best", "last"] = Field(
        "best", description="Which epoch becomes the artifact: the best on the validation split, or the last."
    )

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.schedule.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs ({self.schedule.warmup_epochs:g}) is longer than epochs ({self.epochs})")
        return self


class ArchitectureStudent(Frozen):
    """A built-in architecture with new weights, drawn from the job's seed."""

    architecture: Architecture


class ModelStudent(Frozen):
    """A registered model; `reset` draws its weights anew."""

    model: ModelId
    reset: bool = False


class ShrunkStudent(Frozen):
    """The teacher's own graph, pruned to a share of its cost."""

    shrink: dict[Literal["macs", "params", "bytes"], Annotated[float, Field(gt=0, lt=1)]] = Field(
        min_length=1, max_length=1
    )


def _student_kind(student: Any) -> str | None:
    keys = student if isinstance(student, Mapping) else getattr(student, "__dict__", {})
    return next((key for key in ("architecture", "model", "shrink") if key in keys), None)


Student = Annotated[
    Annotated[ArchitectureStudent, Tag("architecture")]
    | Annotated[ModelStudent, Tag("model")]
    | Annotated[ShrunkStudent, Tag("shrink")],
    Discriminator(
        _student_kind,
        custom_error_type="student_kind",
        custom_error_message='a student is {"architecture": …}, {"model": …} or {"shrink": …}',
    ),
]


class DistillConfig(Frozen):
    objective: Objective = Field(default_factory=KdObjective)
    training: Training = Field(default_factory=Training)
    control: bool = Field(
        default=False, description="Also train the same student, from the same seed, on the labels alone."
    )


class Job(Frozen):
    """What all jobs have in common."""

    seed: Seed = 0
    labels: Labels = Field(default_factory=dict)
    deadline_seconds: float | None = Field(None, gt=0, le=10**9, description="From submission; past it the job fails.")


class DistillSpec(Job):
    """Train a student to answer as its teacher does."""

    type: Literal["distill"]
    teacher: ModelId
    dataset: DatasetId
    student: Student
    config: DistillConfig = Field(default_factory=DistillConfig)

    @property
    def models(self) -> tuple[str, ...]:
        """The models that the job reads."""
        return (self.teacher, self.student.model) if isinstance(self.student, ModelStudent) else (self.teacher,)
