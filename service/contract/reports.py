"""What a finished job says, exactly: teacher against student on a held-out split.

Information is in nats, latency in seconds, sizes in bytes; intervals are 95%.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

#: The report as a page, among the files of the result.
PAGE_FILE = "report.html"


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(_Data):
    """An estimate and its 95% interval."""

    value: float
    low: float
    high: float


class Latency(_Data):
    """Wall-clock time of one forward pass, measured in alternation with the teacher's."""

    batch: int
    median_seconds: float
    iqr_seconds: float


class ReliabilityBin(_Data):
    """One equal-mass bin of confidences."""

    confidence: float
    accuracy: float
    examples: int


class Measures(_Data):
    """One model on the evaluation split."""

    accuracy: Interval | None = Field(None, description="Wilson interval; null without labels.")
    nll: float | None = Field(None, description="Mean negative log-likelihood of the labels, in nats.")
    predictive_entropy: float = Field(description="E H(p(x)), in nats.")
    marginal_entropy: float = Field(description="H of the mean output, in nats.")
    claimed_information: float = Field(
        description="I(X;Ŷ) = marginal − predictive entropy; means what it says only for a calibrated model."
    )
    label_information: float | None = Field(
        None, description="I(Y;Ŷ) from the confusion matrix, Miller–Madow; may be slightly negative."
    )
    calibration_error: float | None = Field(None, description="Expected calibration error, equal-mass bins.")
    intervals: dict[str, Interval] = Field(
        default_factory=dict,
        description="By name, of nll, predictive_entropy, marginal_entropy, claimed_information, label_information and "
        "calibration_error, from resamples that all models share. Those of the mean output (marginal_entropy, "
        "claimed_information) are left out for very many classes or examples.",
    )
    reliability: tuple[ReliabilityBin, ...] = ()
    parameters: int
    macs: int = Field(description="Multiply-accumulates for one example.")
    bytes: int = Field(description="Size of model.safetensors on disk.")
    latency: tuple[Latency, ...] = ()


class McNemar(_Data):
    """Exact test of equal accuracy: b examples only the first model (teacher or control) has right, c the other."""

    b: int
    c: int
    p_value: float


class Comparison(_Data):
    """A student (or its control) against its teacher, over the same examples."""

    agreement: Interval = Field(description="Share of examples with the same most likely class.")
    agreement_on_teacher_errors: Interval | None = None
    kl_teacher_student: Interval
    kl_student_teacher: Interval
    jensen_shannon: Interval
    accuracy_difference: Interval | None = Field(None, description="Student minus teacher, paired bootstrap.")
    nll_difference: Interval | None = Field(None, description="Student minus teacher, in nats, paired bootstrap.")
    predictive_entropy_difference: Interval | None = Field(
        None, description="Student minus teacher, in nats, paired bootstrap; above 0 the student is less certain."
    )
    mcnemar: McNemar | None = None
    latency_ratio: float = Field(description="Student's median latency over the teacher's, at the first batch size.")
    macs_ratio: float
    parameters_ratio: float


class ClassOutcome(_Data):
    """One class: how well both models find it, and how far apart they are on its examples."""

    label: int
    name: str | None = Field(None, description="As the dataset calls it.")
    examples: int = Field(description="Of this class in the split.")
    teacher_recall: Interval | None = Field(None, description="Wilson interval; null without an example.")
    teacher_precision: Interval | None = Field(None, description="Wilson interval; null where it never says so.")
    student_recall: Interval | None = None
    student_precision: Interval | None = None
    agreement: Interval | None = Field(None, description="On the class's examples.")
    kl: float | None = Field(None, description="Mean KL(teacher‖student) on the class's examples, in nats.")


class ByClass(_Data):
    """Teacher and student class by class."""

    classes: int = Field(description="That occur, as labels or as predictions.")
    outcomes: tuple[ClassOutcome, ...] = Field(
        description="By label; of more than 100 classes, the 100 on whose examples the models differ most by KL."
    )


class Spread(_Data):
    """How a quantity is spread over the inputs of the split, in nats."""

    mean: float
    quantiles: dict[str, float] = Field(description="By percentage: 0, 5, 25, 50, 75, 95, 99 and 100.")
    edges: tuple[float, ...] = Field(
        description="Of the histogram's bins, four to a decade. What is below the first edge counts as in the first "
        "bin, what is above the last as in the last."
    )
    histogram: tuple[int, ...] = Field(description="Inputs in each bin; one fewer than there are edges.")


class Prediction(_Data):
    """A model's most likely class."""

    label: int
    name: str | None = Field(None, description="As the dataset calls it.")
    probability: float


class Disagreement(_Data):
    """An input on which student and teacher differ."""

    row: int = Field(description="Its place in the split, from 0.")
    label: int | None = None
    name: str | None = Field(None, description="The label as the dataset calls it.")
    teacher: Prediction
    student: Prediction
    kl: float = Field(description="KL(teacher‖student) at this input, in nats.")


class ByInput(_Data):
    """Teacher and student input by input."""

    kl: Spread = Field(description="Of KL(teacher‖student).")
    jensen_shannon: Spread
    most_different: tuple[Disagreement, ...] = Field(description="The ten inputs of the largest KL, the largest first.")


class Advantage(_Data):
    """What the student has over another network: student minus it, over the same examples, paired bootstrap."""

    accuracy_difference: Interval | None = None
    nll_difference: Interval | None = Field(None, description="In nats; below 0 the student is better.")
    kl_difference: Interval = Field(
        description="KL(teacher‖student) − KL(teacher‖other), in nats; below 0 the student is closer."
    )
    mcnemar: McNemar | None = None


class Selection(_Data):
    """Which epoch became the artifact, and how the other candidate did on the same split."""

    selected: Literal["best", "last"]
    epoch: int = Field(description="Epoch of the artifact, from 1.")
    other: Literal["best", "last"] | None = None
    other_epoch: int | None = None
    other_accuracy: Interval | None = None
    other_nll: float | None = None


class StageOutcome(_Data):
    """What one stage of a job took, and where the model stood after it."""

    name: str
    seconds: float
    accuracy: float | None = None
    kl: float | None = None


class Finding(_Data):
    """A statement in plain words, with the numbers it rests on."""

    text: str
    numbers: dict[str, float]


class Environment(_Data):
    """Where the numbers were measured."""

    device: str
    threads: int
    precision: str
    versions: dict[str, str]


class FileVerification(_Data):
    """One file of the artifact, opened again in a fresh process by the tool that its user would take."""

    file: str
    sha256: str = Field(description="Of the bytes that were opened; the manifest gives the same.")
    tool: str = Field(description="What opened and ran it.")
    version: str = Field(description="Of the tool.")
    examples: int = Field(description="Inputs of the evaluation split on which outputs were compared.")
    max_abs_difference: float = Field(
        description="The largest difference of a logit from the trained model's, on all examples and on one alone."
    )
    tolerance: float = Field(description="The most that it may be, or else the job fails.")


class Contender(_Data):
    """A network that was made beside the result, at the same cost."""

    measures: Measures
    comparison: Comparison = Field(description="Against the teacher.")
    advantage: Advantage | None = Field(None, description="What the student has over it.")


class GroupOutcome(_Data):
    """What became of one dependency group, over all steps."""

    name: str
    kind: str
    units_before: int
    units_after: int
    macs_per_unit: int = Field(description="What the whole network saved without one unit, at the beginning.")
    parameters_per_unit: int


class GroupScores(_Data):
    """The scores of a group's units in one step; high means keep."""

    before: int = Field(description="Units before the step.")
    after: int
    cut: float | None = Field(description="The score that parted the units; null where none was asked for.")
    quantiles: tuple[float, ...] = Field(description="At 0, 25, 50, 75 and 100%.")
    histogram: tuple[int, ...] = Field(description="20 bins of equal width from the lowest score to the highest.")
    undecided: int = Field(description="Units whose score is within two standard errors of the cut.")


class PruningStep(_Data):
    """One network on the way: smaller than the one before."""

    index: int
    macs: int
    parameters: int
    bytes: int = Field(description="Of parameters and buffers.")
    seconds: float | None = Field(None, description="Latency at batch 1, where it was the target.")
    kl: float = Field(description="KL(teacher‖network) on the validation split, in nats.")
    accuracy: float | None = Field(None, description="On the validation split.")
    allocation: str = Field(description="How units of different groups were compared.")
    calibration_examples: int
    undecided: int = Field(description="Units that cannot be told from the cut.")
    groups: dict[str, GroupScores]
    refit: dict[str, Any] | None = Field(None, description="What became of each layer that was refitted.")
    notes: tuple[str, ...] = ()
    file: str | None = Field(None, description="This network among the result's files.")


class Pruning(_Data):
    """What pruning did."""

    split: str = Field(description="On which steps were judged.")
    criterion: str
    stopped_by: Literal["target", "limit", "floor"] = Field(
        description="target: it was reached; limit: one more step would break a limit; floor: nothing more may go."
    )
    reach: str = Field(description="How far the network could go, and what holds the rest.")
    groups: tuple[GroupOutcome, ...]
    steps: tuple[PruningStep, ...] = Field(description="Every network on the way, the largest first.")


class Report(_Data):
    """The final comparison."""

    job: str
    split: str
    examples: int
    teacher: Measures
    student: Measures
    control: Measures | None = None
    comparison: Comparison
    control_comparison: Comparison | None = Field(None, description="The control against the teacher.")
    distillation_effect: Advantage | None = Field(
        None, description="What the teacher's outputs added: the student against the control."
    )
    by_class: ByClass | None = Field(None, description="Teacher and student class by class; null without labels.")
    by_input: ByInput | None = Field(None, description="Teacher and student input by input.")
    controls: dict[str, Contender] = Field(
        default_factory=dict, description="By name: what other ways gave at the same cost."
    )
    pruning: Pruning | None = Field(None, description="Of a pruning job: every step on the way.")
    selection: Selection | None = Field(None, description="Where something was trained: which epoch was chosen.")
    environment: Environment
    stages: tuple[StageOutcome, ...] = ()
    findings: tuple[Finding, ...] = ()
    verification: tuple[FileVerification, ...] = Field(
        (), description="How far the files that leave are from the trained model."
    )


ReportData = dict[str, Any]
