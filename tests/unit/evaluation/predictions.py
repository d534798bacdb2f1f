"""Logits and labels that look like a teacher's, a student's and a control's."""

import torch
from torch import Tensor

CLASSES = 5


def labelled_logits(
    seed: int, num_examples: int = 200, strength: float = 2.0, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Noisy logits (n, 5) that lean to the right class, and the labels (n,)."""
    generator = torch.Generator().manual_seed(seed)
    if labels is None:
        labels = torch.randint(CLASSES, (num_examples,), generator=generator)
    noise = 1.5 * torch.randn(len(labels), CLASSES, generator=generator)
    return noise + strength * torch.nn.functional.one_hot(labels, CLASSES), labels
