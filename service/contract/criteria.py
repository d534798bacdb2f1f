"""The criteria by which pruning judges units, each with its options.

Every criterion says of each unit how much the network needs it: a high score means keep. A unit is a whole
dependency group's channel, gone from every layer that carries it; ablating it means replacing it wherever it is read.
Scores of `comparable` criteria speak of the network's output, and are ranked across layers; the others read
one layer alone, and are ranked within their group only.

p is the network's output distribution at an input, p_i the same with unit i ablated, p̄ the mean over inputs.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from service.contract.catalogue import Frozen

Ablation = Literal["residual", "mean", "zero"]


class CriterionOptions(Frozen):
    """What every criterion says of itself."""

    summary: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    source: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    comparable: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_inputs: ClassVar[bool] = True


class LeaveOneOut(CriterionOptions):
    """Every unit is ablated in turn, and the outputs compared."""

    cost: ClassVar[str] = "one pass for each unit, over what follows it"
    ablation: Ablation = Field(
        "mean",
        description="What stands in for a unit: zero; its mean; or what the other units of its group predict of it, "
        "so that only its residual is taken away.",
    )


class OutputKl(CriterionOptions):
    summary = "How far the outputs move when the unit goes; needs no labels. The default."
    formula = "E KL(p || p_i)"
    source = "Stillhouse; linearised, it is close to the Fisher score of Theis et al. 2018"
    cost = "linearised: one backward pass for each class (or probe); exact: one pass for each unit"
    name: Literal["output_kl"] = "output_kl"
    mode: Literal["linearised", "exact", "screened"] = Field(
        "linearised",
        description="linearised: the logits without the unit by their gradient; exact: every unit is ablated; "
        "screened: linearised, then exact for the units near the cut.",
    )
    ablation: Ablation = Field(
        "residual",
        description="What stands in for a unit: zero; its mean; or what the other units of its group predict of it, "
        "so that only its residual is taken away.",
    )
    reference: Literal["current", "teacher"] | None = Field(
        None,
        description="Whose outputs p is: those of the network as it is now, or of the one that the job began with. "
        "Left out: current under an interleaved schedule, else teacher.",
    )
    temperature: float | None = Field(
        None, gt=0, le=1000, description="Softens both distributions. Left out: 1 for exact scores, else 4."
    )
    probes: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="For linearised scores: random probes in place of one backward pass for each class. "
        "Left out: none up to 64 classes, else 8.",
    )


class OutputEntropy(LeaveOneOut):
    summary = "The starting formula: how much the entropy of the output falls when the unit goes."
    formula = "H(output with unit i) - H(output without it)"
    source = "the starting formula of entropy pruning; see docs/theory.md for where it misleads"
    name: Literal["output_entropy"]
    reading: Literal["predictive", "marginal"] = Field(
        "predictive", description="predictive: E H(p), how unsure the network is; marginal: H(p̄), of its answers' mix."
    )
    absolute: bool = Field(
        default=False,
        description="Rank by the size of the change. False is the formula as written, whose predictive reading is "
        "negative for useful units: taken literally it prunes the best units first.",
    )


class InformationDrop(LeaveOneOut):
    summary = "How much less the output says about the input when the unit goes."
    formula = "I(X;Y) - I_i(X;Y), with I(X;Y) = H(p̄) - E H(p)"
    source = "Stillhouse; the reading of output entropy that keeps its sign"
    name: Literal["information_drop"]


class LossDelta(LeaveOneOut):
    summary = "How much the loss rises when the unit goes."
    formula = "CE_i - CE"
    source = "the oracle of Molchanov et al. 2017"
    needs_labels = True
    name: Literal["loss_delta"]


class OutputKlFisher(CriterionOptions):
    summary = "The second-order estimate of output_kl from gradients alone."
    formula = "1/2 E Σ_k p_k (∂log p_k/∂g_i)², g_i a gate on the unit"
    source = "Theis et al. 2018, with the model's own distribution in place of the labels"
    cost = "one backward pass for each class (or probe)"
    name: Literal["output_kl_fisher"]
    probes: int | None = Field(None, ge=1, le=1000, description="Left out: none up to 64 classes, else 8.")


class Taylor(CriterionOptions):
    summary = "The squared first-order change of the loss."
    formula = "E (∂L/∂g_i)²"
    source = "Molchanov et al. 2019, equation 9"
    cost = "one backward pass"
    needs_labels = True
    name: Literal["taylor"]


class BinnedCriterion(CriterionOptions):
    """What a unit's own activation says, pooled over positions and binned."""

    cost: ClassVar[str] = "one forward pass"
    comparable: ClassVar[bool] = False
    bins: int = Field(32, ge=2, le=4096, description="Equal-width bins over each unit's range.")


class ActivationEntropy(BinnedCriterion):
    summary = "The entropy of the unit's activation, averaged over positions and binned."
    formula = "H(bin(mean over positions of x_i))"
    source = "Luo and Wu 2017"
    name: Literal["activation_entropy"]


class LabelInformation(BinnedCriterion):
    summary = "How much the unit's activation says about the label."
    formula = "I(bin(mean over positions of x_i); Y), Miller-Madow corrected"
    source = "Battiti 1994, for units in place of features"
    needs_labels = True
    name: Literal["label_information"]


class InformationBottleneck(CriterionOptions):
    summary = "Learned noise on every unit: those go whose signal drowns in it."
    formula = (
        "c μ²/σ² of the gate z ~ N(μ, σ²) on the unit, trained with the penalty beta · 1/2 Σ c log(1 + μ²/σ²), "
        "c the unit's share of the MACs of all units"
    )
    source = "Dai et al. 2018 (VIBNet), equation 10, with the penalty weighted by cost"
    cost = "training: a forward and a backward pass for each epoch, over the calibration inputs, at every scoring"
    name: Literal["information_bottleneck"]
    loss: Literal["task", "distillation"] | None = Field(
        None,
        description="task: cross-entropy with the labels; distillation: KL to the network's own outputs without noise. "
        "Left out: task where there are labels.",
    )
    epochs: int = Field(
        100,
        ge=1,
        le=10_000,
        description="Passes over the calibration inputs, at every scoring. It takes some hundred steps for units to "
        "drown; with smaller batches fewer passes give them, of which scores are noisier.",
    )
    beta: float = Field(
        0.1,
        gt=0,
        le=1000,
        description="Weight of the penalty. The more, the more units drown, and the smaller the network that is left; "
        "units that all drown are ranked by little but chance.",
    )
    lr: float = Field(
        0.05,
        gt=0,
        le=100,
        description="Of the gates, by Adam, falling linearly to 0.",
    )
    weight_rate: float = Field(
        0.0,
        ge=0,
        le=1,
        description="The share of lr at which a copy of the weights is trained along. It is thrown away: the more "
        "it moves, the less its gates speak of the network that is pruned.",
    )
    batch_size: int = Field(128, ge=1, le=1_000_000)


class Magnitude(CriterionOptions):
    """The size of a unit's weights, over every layer of its group; no data are looked at."""

    cost: ClassVar[str] = "none"
    needs_inputs: ClassVar[bool] = False


class L1(Magnitude):
    summary = "The mean absolute weight of the unit, over every layer of its group."
    formula = "mean over layers of Σ |w|, by the mean over the group's units"
    source = "Li et al. 2017; grouped as in Fang et al. 2023"
    name: Literal["l1"]


class L2(Magnitude):
    summary = "The squared norm of the unit's weights, over every layer of its group."
    formula = "mean over layers of Σ w², by the mean over the group's units"
    source = "Li et al. 2017; grouped as in Fang et al. 2023"
    name: Literal["l2"]


class BatchNormScale(Magnitude):
    summary = "The size of the unit's batch-norm scale; units without one are judged by l2."
    formula = "|γ|"
    source = "Liu et al. 2017"
    name: Literal["batchnorm_scale"]


class RandomOrder(Magnitude):
    summary = "Units in an order drawn from the job's seed: the control beside which every criterion must stand."
    formula = "uniform on (0, 1)"
    name: Literal["random"]


CRITERIA: Mapping[str, type[CriterionOptions]] = {
    "output_kl": OutputKl,
    "output_entropy": OutputEntropy,
    "information_drop": InformationDrop,
    "loss_delta": LossDelta,
    "output_kl_fisher": OutputKlFisher,
    "taylor": Taylor,
    "activation_entropy": ActivationEntropy,
    "label_information": LabelInformation,
    "information_bottleneck": InformationBottleneck,
    "l1": L1,
    "l2": L2,
    "batchnorm_scale": BatchNormScale,
    "random": RandomOrder,
}


def _name_of(options: object) -> str:
    return str(options.get("name", "output_kl") if isinstance(options, Mapping) else getattr(options, "name", ""))


Criterion = Annotated[
    Annotated[OutputKl, Tag("output_kl")]
    | Annotated[OutputEntropy, Tag("output_entropy")]
    | Annotated[InformationDrop, Tag("information_drop")]
    | Annotated[LossDelta, Tag("loss_delta")]
    | Annotated[OutputKlFisher, Tag("output_kl_fisher")]
    | Annotated[Taylor, Tag("taylor")]
    | Annotated[ActivationEntropy, Tag("activation_entropy")]
    | Annotated[LabelInformation, Tag("label_information")]
    | Annotated[InformationBottleneck, Tag("information_bottleneck")]
    | Annotated[L1, Tag("l1")]
    | Annotated[L2, Tag("l2")]
    | Annotated[BatchNormScale, Tag("batchnorm_scale")]
    | Annotated[RandomOrder, Tag("random")],
    Discriminator(_name_of),
]
