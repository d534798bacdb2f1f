"""What models answer on a held-out split: their logits, from one reading of the data.

Every number of a report is a function of these logits and the labels, so all models see the same examples in
the same order, and the comparison is paired. The split may be larger than memory; only the logits are kept.

Shapes: n examples, K classes; logits (n, K) float32 and labels (n,) int64, on the CPU.
"""

from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from service.contract.errors import Diverged, InputRejected
from workers.evaluation.cost import evaluating
from workers.journal import Journal
from workers.training.data import Split


def evaluate(
    models: Mapping[str, nn.Module], split: Split, device: torch.device, batch_size: int, journal: Journal
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return each model's logits and the split's labels (None when it has none).

    The models, already on `device`, run in evaluation mode without gradients and have their modes back
    afterwards. Raises Diverged for NaN or infinite outputs, InputRejected for an empty split, for outputs that
    are not one row of K logits per example with the same K for all models, and for labels outside 0…K−1.
    """
    if len(split) == 0:
        raise InputRejected("The split has no examples; a model can only be judged on one that has some.")
    logits: dict[str, list[Tensor]] = {name: [] for name in models}
    labels: list[Tensor] = []
    with ExitStack() as modes, torch.no_grad():
        for model in models.values():
            modes.enter_context(evaluating(model))
        for start in range(0, len(split), batch_size):
            journal.check()
            positions = np.arange(start, min(start + batch_size, len(split)))
            x, y = split.batch(positions, device)
            for name, model in models.items():
                logits[name].append(_checked(model(x), name, len(x)))
            if y is not None:
                labels.append(y.long().cpu())
            journal.progress(start + len(positions), len(split))
    joined = {name: torch.cat(parts) for name, parts in logits.items()}
    y = torch.cat(labels) if labels else None
    _check_classes(joined, y)
    return joined, y


def _checked(output: object, name: str, num_examples: int) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != num_examples:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputRejected(
            f"The {name}'s output for {num_examples} examples is {found}; expected logits of shape "
            f"({num_examples}, number of classes). Export a model that returns one row of logits per example."
        )
    output = output.float().cpu()
    if not bool(torch.isfinite(output).all()):
        broken = int((~torch.isfinite(output)).any(dim=1).sum())
        raise Diverged(
            f"The {name}'s outputs are NaN or infinite for {broken} of {num_examples} examples of a batch; expected "
            "finite logits. Check the input normalisation, or train with a lower learning rate or gradient clipping."
        )
    return output


def _check_classes(logits: Mapping[str, Tensor], labels: Tensor | None) -> None:
    classes = {name: rows.shape[1] for name, rows in logits.items()}
    if len(set(classes.values())) > 1:
        sizes = ", ".join(f"{name} {size}" for name, size in classes.items())
        raise InputRejected(f"The models have different numbers of classes ({sizes}); expected the same for all.")
    size = min(classes.values(), default=0)
    if labels is not None and not bool(((labels >= 0) & (labels < size)).all()):
        raise InputRejected(
            f"Labels run from {int(labels.min())} to {int(labels.max())}; the models have {size} classes, so "
            f"expected 0 to {size - 1}."
        )
