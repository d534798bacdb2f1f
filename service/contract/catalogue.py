"""What can be asked for by name, and with which options.

The service checks requests against these models without torch; the workers map each name to a
function, and a test checks that none is missing.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, field_validator


class Frozen(BaseModel):
    """Data that never change, without unknown fields, NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def named(default: str) -> Discriminator:
    """Choose the kind by `name`; options without a name belong to the default kind."""

    def name_of(options: Any) -> str:
        return str(options.get("name", default) if isinstance(options, Mapping) else getattr(options, "name", default))

    return Discriminator(name_of)


Size = Annotated[int, Field(ge=1, le=1_000_000)]


class ArchitectureOptions(Frozen):
    """What every built-in architecture takes; a student's missing ones are its teacher's."""

    source: ClassVar[str] = ""
    summary: ClassVar[str] = ""

    input_shape: tuple[Size, ...] | None = Field(
        None,
        min_length=1,
        max_length=4,
        description="Shape of one example, without the batch: [channels, height, width].",
        examples=[[1, 28, 28]],
    )
    num_classes: int | None = Field(None, ge=2, le=1_000_000, description="Number of outputs.", examples=[10])


class ImageOptions(ArchitectureOptions):
    """A network over images."""

    input_shape: tuple[Size, Size, Size] | None = Field(
        None, description="[channels, height, width].", examples=[[1, 28, 28]]
    )


class MlpOptions(ArchitectureOptions):
    summary = "Fully connected network with ReLU; flattens its input."
    hidden: tuple[Size, ...] = Field((300, 100), max_length=64, description="Widths of the hidden layers.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout after each hidden layer.")


class LeNet300Options(ArchitectureOptions):
    summary = "LeNet-300-100: two hidden layers of 300 and 100 units; flattens its input."
    source = "LeCun et al. 1998"


class LeNet5Options(ImageOptions):
    summary = "LeNet-5 in its Caffe form: 20 and 50 filters of 5x5, 500 hidden units."
    source = "LeCun et al. 1998"


class ResNetOptions(ImageOptions):
    summary = "Residual network for small images (three stages)."
    source = "He et al. 2016; state-dict keys of the CIFAR-100 distillation tables"


class WrnOptions(ImageOptions):
    summary = "Wide residual network; depth is 6n + 4."
    source = "Zagoruyko and Komodakis 2016; state-dict keys of the CIFAR-100 distillation tables"
    depth: int = Field(16, ge=10, le=100, description="6n + 4: 10, 16, 22, 28, 34, 40, …")
    width: int = Field(2, ge=1, le=20, description="Widening factor.")
    dropout: float = Field(0.0, ge=0, lt=1)

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, depth: int) -> int:
        if (depth - 4) % 6:
            raise ValueError(f"the depth of a wide residual network is 6n + 4 (10, 16, 22, 28, …); got {depth}")
        return depth


class VggOptions(ImageOptions):
    summary = "VGG with batch normalisation, for small images."
    source = "Simonyan and Zisserman 2015; state-dict keys of the CIFAR-100 distillation tables"
    depth: Literal[8, 11, 13, 16, 19] = 8


class MobileNetV2Options(ImageOptions):
    summary = "MobileNetV2 for small images: inverted residuals with expansion 6."
    source = "Sandler et al. 2018; state-dict keys of the CIFAR-100 distillation tables"
    width: float = Field(0.5, ge=0.0625, le=4, description="Width multiplier.")


RESNETS = (
    "resnet8",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet8x4",
    "resnet32x4",
)

ARCHITECTURES: Mapping[str, type[ArchitectureOptions]] = {
    "mlp": MlpOptions,
    "lenet_300_100": LeNet300Options,
    "lenet5": LeNet5Options,
    **dict.fromkeys(RESNETS, ResNetOptions),
    "wrn": WrnOptions,
    "vgg": VggOptions,
    "mobilenetv2": MobileNetV2Options,
}
