"""Which GPUs there are, and which of them a worker sees.

Nothing here asks a driver: a parent that touched CUDA could not fork workers that use it.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus(devices: Path = Path("/dev")) -> list[str]:
    """Return the GPUs that may be used: those that CUDA_VISIBLE_DEVICES names, or else all of this machine."""
    if (chosen := os.environ.get(VARIABLE)) is not None:
        return [gpu.strip() for gpu in chosen.split(",") if gpu.strip()]
    return sorted((path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*")), key=int)


def environ_of_slot(slot: int, gpus: Sequence[str]) -> Mapping[str, str]:
    """Return what the worker of a slot (from 1) is told: one GPU, in turn; nothing where there is none."""
    return {VARIABLE: gpus[(slot - 1) % len(gpus)]} if gpus else {}
