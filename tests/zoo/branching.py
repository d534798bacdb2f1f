"""Networks whose channels are split, joined, shuffled, gated or reused."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_norm_act(num_in: int, num_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(num_in, num_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(num_out),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand, depthwise, project: the block of MobileNetV2."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        wide = 3 * num_in
        self.residual = stride == 1 and num_in == num_out
        self.expand = conv_norm_act(num_in, wide, 1)
        self.depthwise = conv_norm_act(wide, wide, 3, stride, groups=wide)
        self.project = nn.Sequential(nn.Conv2d(wide, num_out, 1, bias=False), nn.BatchNorm2d(num_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """(B, 3, 16, 16) -> (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm_act(3, 8, 3)
        self.blocks = nn.Sequential(InvertedResidual(8, 12, 2), InvertedResidual(12, 12, 1))
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class SqueezeExcitation(nn.Module):
    """Each channel scaled by a gate computed from the means of all."""

    def __init__(self, channels: int, gate: nn.Module) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 2, 1)
        self.expand = nn.Conv2d(channels // 2, channels, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        squeezed = F.adaptive_avg_pool2d(x, 1)
        return x * self.gate(self.expand(F.relu(self.reduce(squeezed))))


class GatedBlock(nn.Module):
    """An inverted residual with squeeze-and-excitation: MobileNetV3 with hard-swish, EfficientNet with SiLU."""

    def __init__(self, channels: int, activation: type[nn.Module], gate: nn.Module) -> None:
        super().__init__()
        wide = 2 * channels
        self.expand = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide, eps=1e-3, momentum=0.01)
        self.depthwise = nn.Conv2d(wide, wide, 5, 1, 2, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide, eps=1e-3, momentum=0.01)
        self.gate = SqueezeExcitation(wide, gate)
        self.project = nn.Conv2d(wide, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
        self.act = activation(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.expand(x)))
        y = self.gate(self.act(self.bn2(self.depthwise(y))))
        return x + self.bn3(self.project(y))


class GatedNet(nn.Module):
    """(B, 3, 16, 16) -> (B, 10)."""

    def __init__(self, activation: type[nn.Module], gate: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.Sequential(GatedBlock(8, activation, gate), GatedBlock(8, activation, gate))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean([2, 3]))


class ShuffleUnit(nn.Module):
    """One half of the channels passes, the other is convolved; then the halves are interleaved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        joined = torch.cat((left, self.branch(right)), dim=1)
        batch, channels, height, width = joined.shape
        return joined.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, -1, height, width)


class ShuffleNet(nn.Module):
    """(B, 3, 16, 16) -> (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2, 1)
        self.units = nn.Sequential(ShuffleUnit(12), ShuffleUnit(12))
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.units(self.stem(x)).mean([2, 3]))


class DenseNet(nn.Module):
    """(B, 3, 16, 16) -> (B, 10): every layer sees the outputs of all before it."""

    def __init__(self, growth: int = 6, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        widths = [8 + growth * index for index in range(depth)]
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for width in widths])
        self.convs = nn.ModuleList([nn.Conv2d(width, growth, 3, padding=1, bias=False) for width in widths])
        self.transition = nn.Conv2d(8 + growth * depth, 12, 1)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        x = F.avg_pool2d(self.transition(torch.cat(features, 1)), 2)
        return self.head(x.mean([2, 3]))


class InceptionBlock(nn.Module):
    """Four branches of different reach, joined; one factorises 3 x 3 into 1 x 3 and 3 x 1."""

    def __init__(self, num_in: int, width: int) -> None:
        super().__init__()
        self.point = nn.Conv2d(num_in, width, 1)
        self.square = nn.Sequential(nn.Conv2d(num_in, width, 1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        self.factored = nn.Sequential(
            nn.Conv2d(num_in, width, (1, 3), padding=(0, 1)), nn.ReLU(), nn.Conv2d(width, width, (3, 1), padding=(1, 0))
        )
        self.pooled = nn.Conv2d(num_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(F.avg_pool2d(x, 3, stride=1, padding=1))
        return F.relu(torch.cat([self.point(x), self.square(x), self.factored(x), pooled], dim=1))


class Inception(nn.Module):
    """(B, 3, 16, 16) -> (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.Sequential(InceptionBlock(8, 4), nn.BatchNorm2d(16), InceptionBlock(16, 5))
        self.head = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean([2, 3]))


class GoogLeNet(nn.Module):
    """(B, 3, 16, 16) -> logits (B, 10) and those of an auxiliary head: several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.LocalResponseNorm(4))
        self.first = InceptionBlock(8, 4)
        self.second = InceptionBlock(16, 4)
        self.auxiliary = nn.Linear(16, 10)
        self.drop = nn.Dropout(0.4)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        early = self.first(self.stem(x))
        late = F.max_pool2d(self.second(early), 3, 2, ceil_mode=True)
        return self.head(self.drop(late.mean([2, 3]))), self.auxiliary(early.mean([2, 3]))
