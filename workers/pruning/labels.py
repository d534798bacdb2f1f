"""The labels of calibration inputs, for criteria that need them."""

import torch
from torch import Tensor

from service.contract.errors import Invalid
from workers.pruning.calibration import Calibration


def required_labels(calibration: Calibration, criterion: str) -> Tensor:
    """The labels of all calibration inputs, (N,) int64; `Invalid` where the dataset has none."""
    y = calibration.split.y
    if y is None:
        raise Invalid(
            f"The criterion {criterion} needs labels, and this dataset has none; "
            "choose one that does without, such as output_kl, or give a labelled dataset."
        )
    return torch.as_tensor(y[calibration.split.rows[calibration.positions]]).long()
