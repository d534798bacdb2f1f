"""The CIFAR residual networks of depth 6n + 2.

A block learns what to add to its input, x + f(x), so that a deep network starts as a near identity and
gradients reach its first layers. Three stages of n blocks work on full, half and quarter resolution; the mean
over pixels is classified. Where a block changes the number of channels or the resolution, a 1 x 1 convolution
with batch norm (`downsample`) carries its input across.

Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2, with a projection for the
shortcut (option B), as in the networks of the CIFAR-100 distillation tables (Tian et al. 2020, "Contrastive
Representation Distillation"): names, shapes and function are theirs, so their checkpoints load. All of them,
depth 44 to 110 too, are built of basic blocks, never of bottlenecks.

Shapes: B examples, C channels, H x W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.students.initial_weights import he_convolutions
from workers.students.input_shape import image_shape

# Channels of the stem and of the three stages.
NARROW = (16, 16, 32, 64)
FOUR_TIMES_WIDER = (32, 64, 128, 256)


def conv3x3(num_in: int, num_out: int, stride: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the resolution (up to its stride); a batch norm supplies the bias."""
    return nn.Conv2d(num_in, num_out, kernel_size=3, stride=stride, padding=1, bias=False)


def projection(num_in: int, num_out: int, stride: int) -> nn.Module:
    """The shortcut's path: nothing where shapes agree, else a strided 1 x 1 convolution with batch norm."""
    if stride == 1 and num_in == num_out:
        return nn.Identity()
    convolution = nn.Conv2d(num_in, num_out, kernel_size=1, stride=stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(num_out))


class BasicBlock(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(num_in, num_out, stride)
        self.bn1 = nn.BatchNorm2d(num_out)
        self.conv2 = conv3x3(num_out, num_out)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.downsample = projection(num_in, num_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return F.relu(residual + self.downsample(x))


def stage(num_blocks: int, num_in: int, num_out: int, stride: int) -> nn.Sequential:
    """`num_blocks` blocks, of which the first changes channels and resolution."""
    first = BasicBlock(num_in, num_out, stride)
    return nn.Sequential(first, *(BasicBlock(num_out, num_out, 1) for _ in range(num_blocks - 1)))


class ResNet(nn.Module):
    """(B, C, H, W) -> logits (B, num_classes); `num_filters` counts the channels of stem and stages."""

    def __init__(
        self,
        depth: int,  # 6n + 2: the stem, three stages of n blocks of two convolutions, and the classifier
        num_filters: tuple[int, int, int, int],
        input_shape: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape("a CIFAR ResNet", input_shape)
        num_blocks = (depth - 2) // 6
        stem, *widths = num_filters
        self.conv1 = conv3x3(channels, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = stage(num_blocks, stem, widths[0], stride=1)
        self.layer2 = stage(num_blocks, widths[0], widths[1], stride=2)
        self.layer3 = stage(num_blocks, widths[1], widths[2], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)  # 8 x 8 for CIFAR's 32 x 32
        self.fc = nn.Linear(widths[2], num_classes)
        he_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits
