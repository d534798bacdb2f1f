"""Checkpoints: everything that a training needs to go on as if nothing had happened.

The content is tensors and plain data, read back with `weights_only=True`: a checkpoint comes out of storage,
and nothing in it may run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from workers.training.durable import replacing


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings, and dicts, lists and tuples of them; whole or not at all."""
    with replacing(path) as temporary:
        torch.save(dict(content), temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; tensors are on the CPU."""
    return cast("dict[str, Any]", torch.load(path, weights_only=True, map_location="cpu"))
