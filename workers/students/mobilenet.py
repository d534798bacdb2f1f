"""MobileNetV2 for small images: inverted residuals around cheap depthwise convolutions.

A block widens its input by 1 x 1 convolutions (`EXPANSION` times), filters each channel on its own (a
depthwise 3 x 3 convolution), and projects to few channels *without* a nonlinearity, which would lose
information there. Where shapes agree, the input is added. The bulk of the work is in 1 x 1 convolutions.

Source: Sandler et al. 2018, "MobileNetV2", table 2, in the form of the CIFAR-100 distillation tables (Tian et
al. 2020), whose names, shapes and function these are: ReLU in place of ReLU6, stride 1 in the second stage,
an expansion step even where the factor is 1, channel counts cut to whole numbers rather than to multiples
of 8. Their MobileNetV2 is the one of width 0.5.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workers.students.initial_weights import he_convolutions, small_classifier
from workers.students.input_shape import image_shape

EXPANSION = 6
STEM_CHANNELS = 32
LAST_CHANNELS = 1280

# (expansion, channels at width 1, blocks, stride of the first block) of each stage.
STAGES = (
    (1, 16, 1, 1),
    (EXPANSION, 24, 2, 1),
    (EXPANSION, 32, 3, 2),
    (EXPANSION, 64, 4, 2),
    (EXPANSION, 96, 3, 1),
    (EXPANSION, 160, 3, 2),
    (EXPANSION, 320, 1, 1),
)


def conv_norm(num_in: int, num_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the resolution (up to its stride), and its batch norm."""
    convolution = nn.Conv2d(num_in, num_out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(num_out)]


class InvertedResidual(nn.Module):
    """Widen, filter each channel, project; plus the input where shapes agree."""

    def __init__(self, num_in: int, num_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = num_in * expansion
        self.adds_input = stride == 1 and num_in == num_out
        self.conv = nn.Sequential(
            *conv_norm(num_in, wide, 1),
            nn.ReLU(),
            *conv_norm(wide, wide, 3, stride, groups=wide),
            nn.ReLU(),
            *conv_norm(wide, num_out, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.adds_input else out


class MobileNetV2(nn.Module):
    """(B, C, H, W) -> logits (B, num_classes)."""

    def __init__(self, channels: int, num_classes: int, width: float) -> None:
        super().__init__()
        num_in = int(STEM_CHANNELS * width)
        self.conv1 = nn.Sequential(*conv_norm(channels, num_in, 3, stride=2), nn.ReLU())
        stages = []
        for expansion, unscaled, num_blocks, first_stride in STAGES:
            num_out = int(unscaled * width)
            blocks = []
            for i in range(num_blocks):
                blocks.append(InvertedResidual(num_in, num_out, first_stride if i == 0 else 1, expansion))
                num_in = num_out
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        last = int(LAST_CHANNELS * max(width, 1.0))
        self.conv2 = nn.Sequential(*conv_norm(num_in, last, 1), nn.ReLU())
        self.avgpool = nn.AdaptiveAvgPool2d(1)  # 2 x 2 for CIFAR's 32 x 32
        classifier = nn.Linear(last, num_classes)
        self.classifier = nn.Sequential(classifier)
        he_convolutions(self)
        small_classifier(classifier)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.blocks(self.conv1(x)))
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(x), 1))
        return logits


def mobilenetv2(input_shape: Sequence[int], num_classes: int, width: float = 0.5) -> MobileNetV2:
    """MobileNetV2 with every stage's channels multiplied by `width`."""
    smallest = 1 / min(unscaled for _, unscaled, _, _ in STAGES)
    if not width >= smallest:
        raise ValueError(f"mobilenetv2 needs a width of at least {smallest}, and got {width}.")
    channels, _, _ = image_shape("mobilenetv2", input_shape)
    return MobileNetV2(channels, num_classes, width)
