"""The teacher's logits, computed once.

A view of an example that replays exactly (here: every example as it is, nothing augmented) has the same
logits in every epoch, so the teacher runs once over a split, and training reads rows of a memory-mapped file.
The file appears whole or not at all, so a resumed job may trust it.
"""

from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from service.contract.errors import InputRejected
from workers.journal import Journal
from workers.training.data import Split
from workers.training.durable import replacing

Logits = npt.NDArray[np.float32]  # (n, K), row i for position i of the split


def teacher_logits(
    teacher: nn.Module, split: Split, path: Path, *, device: torch.device, batch_size: int, journal: Journal
) -> Logits:
    """Return the teacher's float32 logits (n, K) for a split, memory-mapped from `path`, where they are kept.

    The teacher must be on `device`; it runs in evaluation mode and in float32. Raises InputRejected when its
    outputs are not one row of finite logits per example, and Stopped when the journal says so.
    """
    kept = _kept(path, len(split))
    if kept is None:
        with replacing(path) as temporary:
            _compute(teacher, split, temporary, device=device, batch_size=batch_size, journal=journal)
        kept = np.load(path, mmap_mode="r")
    return kept


def _kept(path: Path, num_examples: int) -> Logits | None:
    try:
        logits = np.load(path, mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):
        return None
    fits = logits.dtype == np.float32 and logits.ndim == 2 and len(logits) == num_examples
    return cast("Logits", logits) if fits else None


@torch.inference_mode()
def _compute(
    teacher: nn.Module, split: Split, path: Path, *, device: torch.device, batch_size: int, journal: Journal
) -> None:
    teacher.eval()
    rows: Logits | None = None
    for start in range(0, len(split), batch_size):
        journal.check()
        positions = np.arange(start, min(start + batch_size, len(split)))
        x, _ = split.batch(positions, device)
        logits = _checked(teacher(x).float(), len(positions))
        if rows is None:
            shape = (len(split), logits.shape[1])
            rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        rows[positions] = logits.cpu().numpy()
        journal.progress(int(positions[-1]) + 1, len(split))
    if isinstance(rows, np.memmap):
        rows.flush()


def _checked(logits: Tensor, num_examples: int) -> Tensor:
    if logits.dim() != 2 or len(logits) != num_examples:
        raise InputRejected(
            f"the teacher answers {num_examples} examples with a tensor of shape {tuple(logits.shape)}; "
            "expected one row of class logits per example"
        )
    broken = int((~logits.isfinite()).any(dim=1).sum())
    if broken:
        raise InputRejected(
            f"the teacher's outputs are NaN or infinite for {broken} of {num_examples} examples; "
            "check its weights, and that the dataset is normalised as it was when the teacher was trained"
        )
    return logits
