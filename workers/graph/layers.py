"""From an ATen call to the ordinary layer that makes it: one row of a table per operator.

A row says which argument is the layer's input, which arguments are tensors that the layer owns and under which
names, and how the layer is built from the others. The layers are built on the meta device, so that nothing is
allocated or drawn; lifting.py then puts the original's tensors in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """A call to be made a layer."""

    arguments: Mapping[str, Any]  # by the schema's names
    tensors: Mapping[str, Tensor]  # what the layer owns, by the layer's names
    rank: int  # dimensions of the input

    @property
    def weight(self) -> Tensor:
        return self.tensors["weight"]

    @property
    def placement(self) -> dict[str, Any]:
        """Where and in which dtype a layer is built before it gets its tensors."""
        return {"device": "meta", "dtype": next(iter(self.tensors.values())).dtype}


@dataclass(frozen=True)
class LayerRow:
    """How one operator becomes a layer."""

    input: str
    owned: Mapping[str, str]  # argument -> the layer's name of it
    build: Callable[[Call], nn.Module]


def linear(call: Call) -> nn.Module:
    outputs, inputs = call.weight.shape
    return nn.Linear(inputs, outputs, bias="bias" in call.tensors, **call.placement)


def spread(value: Any, dimensions: int) -> Any:
    """A convolution's option per spatial dimension; a word such as "same" as it is."""
    if isinstance(value, str):
        return value
    return tuple(value) * dimensions if len(value) == 1 else tuple(value)


CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def convolution(call: Call) -> nn.Module:
    """Weights are (out, in / groups, *kernel)."""
    options, (outputs, inputs, *kernel) = call.arguments, call.weight.shape
    return CONVOLUTIONS[len(kernel)](
        inputs * options["groups"],
        outputs,
        tuple(kernel),
        stride=spread(options["stride"], len(kernel)),
        padding=spread(options["padding"], len(kernel)),
        dilation=spread(options["dilation"], len(kernel)),
        groups=options["groups"],
        bias="bias" in call.tensors,
        **call.placement,
    )


TRANSPOSED: dict[int, Callable[..., nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


def transposed_convolution(call: Call) -> nn.Module:
    """Weights are (in, out / groups, *kernel)."""
    options, (inputs, outputs, *kernel) = call.arguments, call.weight.shape
    return TRANSPOSED[len(kernel)](
        inputs,
        outputs * options["groups"],
        tuple(kernel),
        stride=spread(options["stride"], len(kernel)),
        padding=spread(options["padding"], len(kernel)),
        output_padding=spread(options["output_padding"], len(kernel)),
        dilation=spread(options["dilation"], len(kernel)),
        groups=options["groups"],
        bias="bias" in call.tensors,
        **call.placement,
    )


BATCH_NORMS: dict[int, Callable[..., nn.Module]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
INSTANCE_NORMS: dict[int, Callable[..., nn.Module]] = {
    3: nn.InstanceNorm1d,
    4: nn.InstanceNorm2d,
    5: nn.InstanceNorm3d,
}


def batch_norm(call: Call) -> nn.Module:
    return statistics_norm(BATCH_NORMS[call.rank], call, training=call.arguments["training"])


def instance_norm(call: Call) -> nn.Module:
    return statistics_norm(INSTANCE_NORMS[call.rank], call, training=call.arguments["use_input_stats"])


def statistics_norm(kind: Callable[..., nn.Module], call: Call, *, training: bool) -> nn.Module:
    """A norm that may keep running statistics.

    In evaluation mode torch writes a momentum of None (a plain average over all batches) as 0, which by itself
    would never learn; it becomes None again.
    """
    options = call.arguments
    forgotten = options["momentum"] == 0.0 and not training
    return kind(
        len(next(iter(call.tensors.values()))),
        eps=options["eps"],
        momentum=None if forgotten else options["momentum"],
        affine="weight" in call.tensors,
        track_running_stats="running_mean" in call.tensors,
        **call.placement,
    )


def layer_norm(call: Call) -> nn.Module:
    options = call.arguments
    return nn.LayerNorm(options["normalized_shape"], options["eps"], bias="bias" in call.tensors, **call.placement)


def rms_norm(call: Call) -> nn.Module:
    return nn.RMSNorm(call.arguments["normalized_shape"], call.arguments["eps"], **call.placement)


def group_norm(call: Call) -> nn.Module:
    return nn.GroupNorm(call.arguments["num_groups"], len(call.weight), call.arguments["eps"], **call.placement)


def embedding(call: Call) -> nn.Module:
    options, (entries, features) = call.arguments, call.weight.shape
    return nn.Embedding(
        entries,
        features,
        padding_idx=options["padding_idx"] if options["padding_idx"] >= 0 else None,
        scale_grad_by_freq=options["scale_grad_by_freq"],
        sparse=options["sparse"],
        **call.placement,
    )


def prelu(call: Call) -> nn.Module:
    return nn.PReLU(call.weight.numel(), **call.placement)


WEIGHT_AND_BIAS = {"weight": "weight", "bias": "bias"}
WITH_STATISTICS = WEIGHT_AND_BIAS | {"running_mean": "running_mean", "running_var": "running_var"}

LAYERS: dict[str, LayerRow] = {
    "linear": LayerRow("input", WEIGHT_AND_BIAS, linear),
    **dict.fromkeys(["conv1d", "conv2d", "conv3d"], LayerRow("input", WEIGHT_AND_BIAS, convolution)),
    **dict.fromkeys(
        ["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"],
        LayerRow("input", WEIGHT_AND_BIAS, transposed_convolution),
    ),
    "batch_norm": LayerRow("input", WITH_STATISTICS, batch_norm),
    "instance_norm": LayerRow("input", WITH_STATISTICS, instance_norm),
    "layer_norm": LayerRow("input", WEIGHT_AND_BIAS, layer_norm),
    "rms_norm": LayerRow("input", {"weight": "weight"}, rms_norm),
    "group_norm": LayerRow("input", WEIGHT_AND_BIAS, group_norm),
    "embedding": LayerRow("indices", {"weight": "weight"}, embedding),
    "prelu": LayerRow("self", {"weight": "weight"}, prelu),
}

FEATURE_DROPOUTS: dict[int, Callable[[float], nn.Module]] = {
    3: nn.Dropout1d,
    4: nn.Dropout2d,
    5: nn.Dropout3d,
}


def feature_dropout(p: float, rank: int) -> nn.Module:
    """Whole channels of (B, C, ...); of (B, C) it is called as for pictures, which torch allows with a warning."""
    return FEATURE_DROPOUTS.get(rank, nn.Dropout2d)(p)


# Layers without tensors: (p, dimensions of the input) -> the layer.
DROPOUTS: dict[str, Callable[[float, int], nn.Module]] = {
    "dropout": lambda p, _: nn.Dropout(p),
    "alpha_dropout": lambda p, _: nn.AlphaDropout(p),
    "feature_dropout": feature_dropout,
    "feature_alpha_dropout": lambda p, _: nn.FeatureAlphaDropout(p),
}

# Operators that stay calls but whose behaviour in training is an argument.
TRAINING_ARGUMENTS: dict[str, str] = {
    "batch_norm": "training",
    "instance_norm": "use_input_stats",
    "rrelu": "training",
    "rrelu_": "training",
    **dict.fromkeys(["dropout_", "feature_dropout_", "alpha_dropout_", "feature_alpha_dropout_"], "train"),
    **dict.fromkeys(["lstm", "gru", "rnn_tanh", "rnn_relu"], "train"),
}
