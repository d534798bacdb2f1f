"""A small problem to train on: noisy points around one centre per class, and journals that listen or interrupt."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from workers.journal import Silent, Stopped
from workers.training.data import Dataset, Scaling, Split
from workers.training.outcome import State

CPU = torch.device("cpu")
NUM_CLASSES, NUM_FEATURES = 3, 6


def blobs(num_train: int = 60, num_validation: int = 20, *, labelled: bool = True, noise: float = 1.0) -> Dataset:
    generator = np.random.default_rng(0)
    n = num_train + num_validation
    y = generator.integers(0, NUM_CLASSES, n)
    centres = generator.normal(size=(NUM_CLASSES, NUM_FEATURES))
    x = (centres[y] + noise * generator.normal(size=(n, NUM_FEATURES))).astype(np.float32)

    def split(start: int, stop: int) -> Split | None:
        return Split(x, y if labelled else None, np.arange(start, stop), Scaling()) if stop > start else None

    return Dataset(split(0, num_train), split(num_train, n), None, NUM_CLASSES if labelled else None, (NUM_FEATURES,))


def small_network(seed: int = 0, *, dropout: float = 0.3) -> nn.Module:
    """Linear layers with batch norm, which has buffers, and dropout, which draws."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(NUM_FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, NUM_CLASSES)
        )


def fingerprint(state: State) -> str:
    """SHA-256 of names, types, shapes and bits."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass
class Listening(Silent):
    """Remembers everything."""

    metric_points: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)
    checkpoints: list[tuple[Path, int]] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def progress(self, step: int, total: int) -> None:
        self.steps.append((step, total))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.metric_points.append((step, dict(values)))

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        self.events.append((kind, dict(data)))

    def checkpoint(self, path: Path, step: int) -> None:
        self.checkpoints.append((path, step))


class Crash(Exception):
    """The process ends here, and saves nothing."""


@dataclass
class Interrupting(Listening):
    """Stops, or crashes, when it is asked for the nth time whether to go on; checkpoints are due every few steps."""

    stop_at: int = 10**9
    crash_at: int = 10**9
    due_every: int = 10**9
    asked: int = 0
    due_asked: int = 0

    def check(self) -> None:
        self.asked += 1
        if self.asked >= self.crash_at:
            raise Crash
        if self.asked >= self.stop_at:
            raise Stopped

    def checkpoint_is_due(self) -> bool:
        self.due_asked += 1
        return self.due_asked % self.due_every == 0
