"""Multilayer perceptrons: flatten, then linear layers with ReLU between them.

LeNet-300-100 (LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition", section III.C.4,
with ReLU as in the pruning literature) is the one with 300 and 100 hidden units.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.students.input_shape import num_features


class Perceptron(nn.Module):
    """Layers `fc1`, `fc2`, ...: (B, any shape) -> logits (B, num_classes)."""

    def __init__(self, num_inputs: int, hidden: Sequence[int], num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        sizes = [num_inputs, *hidden, num_classes]
        self.layer_names = [f"fc{i}" for i in range(1, len(sizes))]
        for name, num_in, num_out in zip(self.layer_names, sizes, sizes[1:], strict=False):
            self.add_module(name, nn.Linear(num_in, num_out))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(x, 1)
        *hidden, last = self.layer_names
        for name in hidden:
            x = self.dropout(F.relu(self.get_submodule(name)(x)))
        logits: Tensor = self.get_submodule(last)(x)
        return logits


def mlp(
    input_shape: Sequence[int],
    num_classes: int,
    hidden: Sequence[int] = (300, 100),
    dropout: float = 0.0,
) -> Perceptron:
    """A perceptron with the given hidden sizes (none gives a linear classifier).

    `dropout` is the probability with which a hidden unit is silenced in training.
    """
    if any(size < 1 for size in hidden):
        raise ValueError(f"mlp needs hidden sizes of at least 1, and got {list(hidden)}.")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"mlp needs a dropout in [0, 1), and got {dropout}.")
    return Perceptron(num_features("mlp", input_shape), hidden, num_classes, dropout)


def lenet_300_100(input_shape: Sequence[int], num_classes: int) -> Perceptron:
    """LeNet-300-100: 784-300-100-10 for MNIST, any input flattened."""
    return Perceptron(num_features("lenet_300_100", input_shape), (300, 100), num_classes, dropout=0.0)
