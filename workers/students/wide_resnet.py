"""Wide residual networks of depth 6n + 4: fewer, wider blocks of the pre-activation kind.

Batch norm and ReLU come *before* each convolution, so the path of additions from input to output is never
clipped. Where a block changes the number of channels, the shortcut (`convShortcut`) reads the activated input,
elsewhere the raw one. "WRN-16-2" is depth 16, width 2.

Source: Zagoruyko and Komodakis 2016, "Wide Residual Networks"; names, shapes and function are those of the
CIFAR-100 distillation tables (Tian et al. 2020), so their checkpoints load.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.students.initial_weights import he_convolutions
from workers.students.input_shape import image_shape
from workers.students.resnet import conv3x3


class PreactivationBlock(nn.Module):
    """shortcut + conv(dropout(relu(bn(conv(relu(bn(x)))))))."""

    convShortcut: nn.Conv2d | None  # noqa: N815  the published checkpoints' own key

    def __init__(self, num_in: int, num_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(num_in)
        self.conv1 = conv3x3(num_in, num_out, stride)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.conv2 = conv3x3(num_out, num_out)
        self.dropout = nn.Dropout(dropout)
        self.convShortcut = None
        if num_in != num_out:
            self.convShortcut = nn.Conv2d(num_in, num_out, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        residual = F.relu(self.bn2(self.conv1(activated)))
        residual = self.dropout(residual)
        out: Tensor = shortcut + self.conv2(residual)
        return out


class Stage(nn.Module):
    """`num_blocks` blocks under the name `layer`, of which the first changes channels and resolution."""

    def __init__(self, num_blocks: int, num_in: int, num_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        first = PreactivationBlock(num_in, num_out, stride, dropout)
        rest = (PreactivationBlock(num_out, num_out, 1, dropout) for _ in range(num_blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """(B, C, H, W) -> logits (B, num_classes)."""

    def __init__(self, channels: int, num_classes: int, depth: int, width: int, dropout: float) -> None:
        super().__init__()
        num_blocks = (depth - 4) // 6
        self.conv1 = conv3x3(channels, 16)
        self.block1 = Stage(num_blocks, 16, 16 * width, 1, dropout)
        self.block2 = Stage(num_blocks, 16 * width, 32 * width, 2, dropout)
        self.block3 = Stage(num_blocks, 32 * width, 64 * width, 2, dropout)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)  # 8 x 8 for CIFAR's 32 x 32
        self.fc = nn.Linear(64 * width, num_classes)
        he_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = self.avgpool(F.relu(self.bn1(x)))
        logits: Tensor = self.fc(torch.flatten(x, 1))
        return logits


def wrn(
    input_shape: Sequence[int], num_classes: int, depth: int = 16, width: int = 2, dropout: float = 0.0
) -> WideResNet:
    """WRN-`depth`-`width`; `dropout` is the probability, in training, inside each block."""
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"wrn needs a depth of 6n + 4 (10, 16, 22, 28, 34, 40, ...), and got {depth}.")
    if width < 1:
        raise ValueError(f"wrn needs a width of at least 1, and got {width}.")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"wrn needs a dropout in [0, 1), and got {dropout}.")
    channels, _, _ = image_shape("wrn", input_shape)
    return WideResNet(channels, num_classes, depth, width, dropout)
