"""Modules without tensors, by which a graph follows `train()`, `eval()` and `to()`.

An export bakes three things into its operators that belong to the module instead: whether it trains, with which
probability attention drops its weights (`scaled_dot_product_attention(..., dropout_p=0.1)`), and the device on
which new tensors are made. Lifting replaces each baked value by a call of one of these modules; what they
return is no tensor, and `node.meta["val"]` of such a call is None.
"""

import torch
from torch import Tensor, nn


class TrainingFlag(nn.Module):
    """() -> whether the network is in training mode."""

    def forward(self) -> bool:
        return self.training


class DropoutRate(nn.Module):
    """() -> `p` in training mode, 0 in evaluation mode."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self) -> float:
        return self.p if self.training else 0.0

    def extra_repr(self) -> str:
        return f"p={self.p}"


class DeviceOf(nn.Module):
    """tensor -> the device that holds it."""

    def forward(self, tensor: Tensor) -> torch.device:
        return tensor.device


SWITCHES = (TrainingFlag, DropoutRate, DeviceOf)
