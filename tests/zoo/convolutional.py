"""Plain and residual convolutional networks, small enough that a test can train them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Perceptron(nn.Module):
    """(B, 48) -> (B, 10), with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(48, 32), nn.Linear(32, 24)])
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.drop(F.relu(layer(x)))
        return self.head(x)


class LeNet(nn.Module):
    """(B, 1, 16, 16) -> (B, 10), with functional pooling and a flattened view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 12, 3, padding=1)
        self.fc1 = nn.Linear(12 * 4 * 4, 20)
        self.fc2 = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.tanh(self.conv1(x)), 2)
        x = F.max_pool2d(torch.tanh(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.view(x.size(0), -1))))


class VGG(nn.Module):
    """(B, 3, 16, 16) -> (B, 10): in-place activations, pooling, dropout before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (8, 8, 16):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(64, 24), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(24, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class PreActivationBlock(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))), the addition in place."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(num_in)
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(num_in, num_out, 1, stride, bias=False) if num_in != num_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        y += self.shortcut(activated)
        return y


class PreActivationResNet(nn.Module):
    """(B, 3, 16, 16) -> (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(
            PreActivationBlock(8, 8, 1), PreActivationBlock(8, 16, 2), PreActivationBlock(16, 16, 1)
        )
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.head(x.mean(dim=(2, 3)))


class Bottleneck(nn.Module):
    """1 x 1 down, grouped 3 x 3, 1 x 1 up, as in ResNet-50 and (with groups) ResNeXt."""

    def __init__(self, num_in: int, width: int, num_out: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, num_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(num_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or num_in != num_out:
            self.downsample = nn.Sequential(nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class BottleneckResNet(nn.Module):
    """(B, 3, H, W) -> (B, classes), the layout of ResNet-50 in the widths that are asked for."""

    def __init__(self, stem: int, blocks: tuple[int, ...], classes: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, channels = [], stem
        for index, count in enumerate(blocks):
            width, out = stem * 2**index, stem * 2**index * 4
            for block in range(count):
                stages.append(Bottleneck(channels, width, out, 2 if index > 0 and block == 0 else 1, groups))
                channels = out
        self.layers = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return self.fc(torch.flatten(self.avgpool(self.layers(x)), 1))


class TimeSeriesNet(nn.Module):
    """(B, 2, 40) -> (B, 5): 1-d convolutions, one dilated with "same" padding, PReLU and dropout of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 12, 5, 2, 2)
        self.norm = nn.BatchNorm1d(12)
        self.conv2 = nn.Conv1d(12, 12, 3, padding="same", dilation=2)
        self.act = nn.PReLU(12)
        self.drop = nn.Dropout1d(0.1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv1(x)).relu()
        x = self.drop(self.act(self.conv2(x)))
        return self.fc(F.adaptive_max_pool1d(x, 1).squeeze(-1))


class UNet(nn.Module):
    """(B, 3, 16, 16) -> (B, 4, 16, 16): transposed convolution, group norm, upsampling, concatenated skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = nn.GroupNorm(4, 8)
        self.down2 = nn.Conv2d(8, 16, 3, 2, 1)
        self.norm2 = nn.GroupNorm(4, 16)
        self.down3 = nn.Conv2d(16, 16, 3, 2, 1)
        self.up1 = nn.ConvTranspose2d(32, 8, 2, 2)
        self.out1 = nn.Conv2d(16, 8, 3, padding=1)
        self.out2 = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = F.gelu(self.norm1(self.down1(x)))
        middle = F.gelu(self.norm2(self.down2(fine)))
        coarse = F.interpolate(F.relu(self.down3(middle)), scale_factor=2, mode="nearest")
        up = self.up1(torch.cat([middle, coarse], 1))
        return self.out2(F.relu(self.out1(torch.cat([fine, up], 1))))
