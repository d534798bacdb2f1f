"""LeNet-5 in Caffe's sizes: 20 and 50 feature maps, 500 hidden units.

This is the LeNet-5 of the pruning literature (431,080 parameters on MNIST), with the layer names and the ReLU
after every layer that PyTorch's own MNIST example gave it. LeCun's original of 1998 is smaller (6-16-120-84)
and not meant here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.students.input_shape import image_shape

# Two 5 x 5 convolutions without padding, each followed by halving: 16 -> 12 -> 6 -> 2 -> 1.
SMALLEST_SIDE = 16


def side_after_convolutions(side: int) -> int:
    """Pixels left of `side` after both convolutions and poolings (28 -> 24 -> 12 -> 8 -> 4)."""
    return ((side - 4) // 2 - 4) // 2


class LeNet5(nn.Module):
    """Layers `conv1`, `conv2`, `fc1`, `fc2`: (B, C, H, W) -> logits (B, num_classes)."""

    def __init__(self, input_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape("lenet5", input_shape, SMALLEST_SIDE)
        num_pixels = side_after_convolutions(height) * side_after_convolutions(width)
        self.conv1 = nn.Conv2d(channels, 20, kernel_size=5)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5)
        self.fc1 = nn.Linear(50 * num_pixels, 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        logits: Tensor = self.fc2(x)
        return logits
