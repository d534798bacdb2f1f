"""Where a model lies when it is written or compared: on the CPU, whatever it was trained on."""

import copy

from torch import nn


def on_cpu(model: nn.Module) -> nn.Module:
    """A copy on the CPU in evaluation mode: what an artifact holds, wherever and however the model was trained."""
    return copy.deepcopy(model).cpu().eval()
