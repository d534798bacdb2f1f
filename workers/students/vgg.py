"""VGG for small images: plain 3 x 3 convolutions with batch norm, halving the resolution between blocks.

Five blocks of convolutions, max pooling between them, the mean over the remaining pixels, one linear
classifier. Source: Simonyan and Zisserman 2015, "Very Deep Convolutional Networks", configurations A, B, D, E,
and the eight-layer one of the CIFAR-100 distillation tables (Tian et al. 2020), whose names, shapes and
function these are: the fully connected layers are gone, and the fourth pooling happens for images of height 64
alone (so that 32 x 32 images reach the last block with 4 x 4 pixels).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.students.initial_weights import he_convolutions, small_classifier
from workers.students.input_shape import image_shape

# Convolutions in each of the five blocks, by depth (which counts the classifier too).
CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
CHANNELS = (64, 128, 256, 512, 512)

SMALLEST_SIDE = 8  # three halvings
POOLED_FOUR_TIMES = 64  # pixels of height


def block(num_in: int, num_out: int, num_convolutions: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU, ... without the last ReLU, which the network itself applies."""
    layers: list[nn.Module] = []
    for _ in range(num_convolutions):
        layers += [nn.Conv2d(num_in, num_out, kernel_size=3, padding=1), nn.BatchNorm2d(num_out), nn.ReLU()]
        num_in = num_out
    return nn.Sequential(*layers[:-1])


class VGG(nn.Module):
    """(B, C, H, W) -> logits (B, num_classes)."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, depth: int) -> None:
        super().__init__()
        num_in, height, _ = input_shape
        self.pooled_after = {0, 1, 2, 3} if height == POOLED_FOUR_TIMES else {0, 1, 2}
        for i, (num_out, count) in enumerate(zip(CHANNELS, CONVOLUTIONS[depth], strict=True)):
            self.add_module(f"block{i}", block(num_in, num_out, count))
            num_in = num_out
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(num_in, num_classes)
        he_convolutions(self)
        small_classifier(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(len(CHANNELS)):
            x = F.relu(self.get_submodule(f"block{i}")(x))
            if i in self.pooled_after:
                x = F.max_pool2d(x, 2)
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(x), 1))
        return logits


def vgg(input_shape: Sequence[int], num_classes: int, depth: int = 8) -> VGG:
    """VGG with batch norm, of depth 8, 11, 13, 16 or 19."""
    if depth not in CONVOLUTIONS:
        raise ValueError(f"vgg needs a depth among {sorted(CONVOLUTIONS)}, and got {depth}.")
    return VGG(image_shape("vgg", input_shape, SMALLEST_SIDE), num_classes, depth)
