"""He initialisation: how the convolutional networks here start.

A ReLU halves the second moment of what passes through it. Weights of variance 2 / fan undo that, so that
signals neither vanish nor explode with depth. Counted over a layer's outputs (fan_out = kernel area x output
channels), it is the gradient's size that is kept. Source: He et al. 2015, "Delving Deep into Rectifiers",
eq. 14; the published CIFAR networks use it.
"""

from torch import nn


def he_convolutions(network: nn.Module) -> None:
    """Draw every convolution of `network` from N(0, 2 / (kernel area x output channels)); biases are zero.

    The fan of a depthwise convolution is that of a full one, as in the published networks. Batch norms keep
    torch's own start, which is the identity.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def small_classifier(classifier: nn.Linear) -> None:
    """Draw a classifier from N(0, 0.01²) with zero bias: it starts from nearly uniform predictions."""
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
