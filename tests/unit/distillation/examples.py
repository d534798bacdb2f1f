"""Small batches of logits and labels, and the losses beside their literal references."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.reference import distillation as reference
from workers.distillation.decoupled import decoupled_distillation
from workers.distillation.losses import knowledge_distillation, soft_loss
from workers.distillation.multilabel import binary_soft_loss, multilabel_distillation
from workers.distillation.regression import regression_distillation
from workers.distillation.relational import relational_distillation

Loss = Callable[..., Tensor]


def logits(seed: int, num_examples: int = 4, num_classes: int = 5, *, size: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits of a student and its teacher, float64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, num_examples, num_classes, generator=generator, dtype=torch.float64)
    return size * drawn[0], size * drawn[1]


def classes(seed: int, num_examples: int = 4, num_classes: int = 5) -> Tensor:
    return torch.randint(num_classes, (num_examples,), generator=torch.Generator().manual_seed(seed))


def zeros_and_ones(seed: int, num_examples: int = 4, num_classes: int = 5) -> Tensor:
    return torch.randint(2, (num_examples, num_classes), generator=torch.Generator().manual_seed(seed)).double()


KD: dict[str, dict[str, Any]] = {
    "kd": {"divergence": "forward_kl"},
    "reverse_kl": {"divergence": "reverse_kl"},
    "jensen_shannon": {"divergence": "jensen_shannon"},
    "jensen_shannon_0.1": {"divergence": "jensen_shannon", "beta": 0.1},
    "standardized": {"divergence": "forward_kl", "standardize": True},
}


def _kd(options: dict[str, Any]) -> tuple[Loss, Callable[..., float]]:
    literal = {("name" if key == "divergence" else key): value for key, value in options.items()}
    ours = partial(knowledge_distillation, temperature=2.5, alpha=0.3, label_smoothing=0.1, **options)
    return ours, partial(reference.knowledge_distillation, temperature=2.5, alpha=0.3, label_smoothing=0.1, **literal)


#: Each loss and its reference, of (student, teacher, labels).
AND_REFERENCES: dict[str, tuple[Loss, Callable[..., float]]] = {
    **{name: _kd(options) for name, options in KD.items()},
    "dkd": (
        partial(decoupled_distillation, temperature=4.0, target_weight=1.0, non_target_weight=8.0, warmup=0.35),
        partial(
            reference.decoupled_distillation, temperature=4.0, target_weight=1.0, non_target_weight=8.0, warmup=0.35
        ),
    ),
    "dist": (
        partial(relational_distillation, temperature=1.5, inter_weight=2.0, intra_weight=3.0),
        partial(reference.relational_distillation, temperature=1.5, inter_weight=2.0, intra_weight=3.0),
    ),
    "bernoulli": (
        partial(multilabel_distillation, temperature=2.0, alpha=0.4),
        partial(reference.multilabel_distillation, temperature=2.0, alpha=0.4),
    ),
    "mse": (
        partial(regression_distillation, alpha=0.4),
        partial(reference.regression_distillation, alpha=0.4),
    ),
}


def labels_for(name: str, seed: int) -> Tensor:
    return zeros_and_ones(seed) if name in {"bernoulli", "mse"} else classes(seed)


#: The terms that look at the teacher alone, of (student, teacher, temperature, labels).
SOFT: dict[str, Callable[[Tensor, Tensor, float, Tensor], Tensor]] = {
    **{
        name: lambda s, t, T, _y, options=options: soft_loss(s, t, temperature=T, **options)
        for name, options in KD.items()
    },
    "dkd": lambda s, t, T, y: decoupled_distillation(
        s, t, y, temperature=T, target_weight=1.0, non_target_weight=8.0, hard_weight=0.0
    ),
    "dkd_standardized": lambda s, t, T, y: decoupled_distillation(
        s, t, y, temperature=T, target_weight=1.0, non_target_weight=8.0, hard_weight=0.0, standardize=True
    ),
    "dist": lambda s, t, T, _y: relational_distillation(
        s, t, None, temperature=T, inter_weight=2.0, intra_weight=2.0, hard_weight=0.0
    ),
    "dist_standardized": lambda s, t, T, _y: relational_distillation(
        s, t, None, temperature=T, inter_weight=2.0, intra_weight=2.0, hard_weight=0.0, standardize=True
    ),
    "bernoulli": lambda s, t, T, _y: binary_soft_loss(s, t, temperature=T),
    "mse": lambda s, t, _T, _y: regression_distillation(s, t, None, alpha=0.0),
}
OF_A_SOFTMAX = sorted(SOFT.keys() - {"bernoulli", "mse"})
STANDARDIZED = [name for name in SOFT if name.endswith("standardized")]
