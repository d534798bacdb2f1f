"""A model on a split, in evaluation mode: the means that training is judged by after each epoch.

Sums are taken in float64, batch by batch in order, so that they do not depend on what was done before.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from workers.information.divergence import kl_divergence_from_logits
from workers.journal import Journal
from workers.training.data import Split
from workers.training.determinism import batch_bounds
from workers.training.learner import Loss
from workers.training.precision import Precision, autocast

Logits = npt.NDArray[np.float32]


def gather(logits: Logits | None, positions: npt.NDArray[np.int64], device: torch.device) -> Tensor | None:
    """The teacher's rows (B, K) for positions within its split, on the device; None without a teacher."""
    return None if logits is None else torch.from_numpy(logits[positions]).to(device)


@torch.inference_mode()
def validate(
    model: nn.Module,
    split: Split,
    loss: Loss,
    teacher_logits: Logits | None,  # (n, K)
    *,
    batch_size: int,
    precision: Precision,
    device: torch.device,
    journal: Journal,
) -> dict[str, float]:
    """Mean "validation/loss"; "validation/accuracy" with labels; with a teacher "validation/kl".

    The last is KL(teacher ‖ student) at temperature 1, in nats. The model is left in evaluation mode.
    """
    model.eval()
    sums: dict[str, Tensor] = {}
    for start, stop in batch_bounds(len(split), batch_size):
        journal.check()
        positions = np.arange(start, stop)
        x, labels = split.batch(positions, device)
        taught = gather(teacher_logits, positions, device)
        with autocast(precision, device):
            logits = model(x)
        for name, value in _batch_sums(logits.float(), taught, labels, loss).items():
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64, device=device)) + value
    return {name: float(value) / len(split) for name, value in sums.items()}


def _batch_sums(logits: Tensor, taught: Tensor | None, labels: Tensor | None, loss: Loss) -> dict[str, Tensor]:
    sums = {"validation/loss": loss(logits, taught, labels).double() * len(logits)}
    if labels is not None:
        sums["validation/accuracy"] = (logits.argmax(dim=-1) == labels).sum()
    if taught is not None:
        sums["validation/kl"] = kl_divergence_from_logits(taught, logits).double().sum()
    return sums
