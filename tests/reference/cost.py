"""The cost of each built-in architecture by the textbook's formulas, summed over its layers by hand.

    convolution   C_out * (C_in / groups) * k² weights, each used once per output pixel; output side
                  floor((side + 2 * padding - k) / stride) + 1
    linear layer  inputs * outputs weights, each used once; `outputs` biases
    batch norm    2 parameters and 2 statistics a channel, and one int64 count; no MACs

Nothing here looks at a network: a `Walk` follows one through from its published description.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Walk:
    """Where a walk through a network's layers stands, and what it has cost so far."""

    channels: int
    height: int
    width: int
    parameters: int = 0
    macs: int = 0
    buffer_bytes: int = 0

    def conv(self, out: int, k: int, stride: int = 1, padding: int = 0, groups: int = 1, *, bias: bool = False) -> None:
        self.height = (self.height + 2 * padding - k) // stride + 1
        self.width = (self.width + 2 * padding - k) // stride + 1
        weights = out * (self.channels // groups) * k * k
        self.parameters += weights + (out if bias else 0)
        self.macs += weights * self.height * self.width
        self.channels = out

    def norm(self) -> None:
        self.parameters += 2 * self.channels
        self.buffer_bytes += 2 * self.channels * 4 + 8

    def pool(self) -> None:
        self.height, self.width = self.height // 2, self.width // 2

    def linear(self, inputs: int, outputs: int) -> None:
        self.parameters += inputs * outputs + outputs
        self.macs += inputs * outputs

    def beside(self, channels: int, height: int, width: int, out: int, stride: int) -> None:
        """A 1 x 1 convolution on an earlier feature map of the given shape: the shortcut's projection."""
        weights = channels * out
        self.parameters += weights
        self.macs += weights * ((height - 1) // stride + 1) * ((width - 1) // stride + 1)

    @property
    def cost(self) -> tuple[int, int, int]:
        """Parameters, MACs, bytes with float32 weights."""
        return self.parameters, self.macs, 4 * self.parameters + self.buffer_bytes


def mlp(shape: Sequence[int], classes: int, hidden: Sequence[int]) -> Walk:
    walk = Walk(1, 1, 1)
    inputs = 1
    for dimension in shape:
        inputs *= dimension
    for outputs in [*hidden, classes]:
        walk.linear(inputs, outputs)
        inputs = outputs
    return walk


def lenet5(shape: Sequence[int], classes: int) -> Walk:
    walk = Walk(*shape)
    walk.conv(20, 5, bias=True)
    walk.pool()
    walk.conv(50, 5, bias=True)
    walk.pool()
    walk.linear(50 * walk.height * walk.width, 500)
    walk.linear(500, classes)
    return walk


def resnet(shape: Sequence[int], classes: int, depth: int, filters: Sequence[int]) -> Walk:
    walk = Walk(*shape)
    walk.conv(filters[0], 3, padding=1)
    walk.norm()
    for stage, out in enumerate(filters[1:]):
        for block in range((depth - 2) // 6):
            stride = 2 if stage > 0 and block == 0 else 1
            before = walk.channels, walk.height, walk.width
            walk.conv(out, 3, stride, padding=1)
            walk.norm()
            walk.conv(out, 3, padding=1)
            walk.norm()
            if stride != 1 or before[0] != out:
                walk.beside(*before, out, stride)
                walk.norm()
    walk.linear(walk.channels, classes)
    return walk


def wrn(shape: Sequence[int], classes: int, depth: int, width: int) -> Walk:
    walk = Walk(*shape)
    walk.conv(16, 3, padding=1)
    for stage, out in enumerate([16 * width, 32 * width, 64 * width]):
        for block in range((depth - 4) // 6):
            stride = 2 if stage > 0 and block == 0 else 1
            before = walk.channels, walk.height, walk.width
            walk.norm()
            walk.conv(out, 3, stride, padding=1)
            walk.norm()
            walk.conv(out, 3, padding=1)
            if before[0] != out:
                walk.beside(*before, out, stride)
    walk.norm()
    walk.linear(walk.channels, classes)
    return walk


def vgg(shape: Sequence[int], classes: int, convolutions: Sequence[int]) -> Walk:
    walk = Walk(*shape)
    for block, (out, count) in enumerate(zip([64, 128, 256, 512, 512], convolutions, strict=True)):
        for _ in range(count):
            walk.conv(out, 3, padding=1, bias=True)
            walk.norm()
        if block < 3 or (block == 3 and shape[1] == 64):
            walk.pool()
    walk.linear(512, classes)
    return walk


def mobilenetv2(shape: Sequence[int], classes: int, width: float) -> Walk:
    walk = Walk(*shape)
    walk.conv(int(32 * width), 3, stride=2, padding=1)
    walk.norm()
    stages = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, out, blocks, stride in stages:
        for block in range(blocks):
            wide = walk.channels * expansion
            walk.conv(wide, 1)
            walk.norm()
            walk.conv(wide, 3, stride if block == 0 else 1, padding=1, groups=wide)
            walk.norm()
            walk.conv(int(out * width), 1)
            walk.norm()
    walk.conv(1280 if width <= 1 else int(1280 * width), 1)
    walk.norm()
    walk.linear(walk.channels, classes)
    return walk
