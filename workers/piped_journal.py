"""The journal of a job: what the pipeline tells goes over the pipe, what the supervisor asks comes back."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workers.journal import Stopped
from workers.lifeline import Lifeline
from workers.pipe import Checkpointed, Measured, Progressed, StageBegan, Told

PROGRESS_SECONDS = 0.5  # progress is told this often at most


class PipedJournal:
    """Implements `workers.journal.Journal`; a stop takes effect at the next `check`."""

    def __init__(self, lifeline: Lifeline, checkpoint_seconds: float, stages: Sequence[str] = ()) -> None:
        self._send = lifeline.channel.send
        self._stop = lifeline.stop_requested
        self._checkpoint_seconds = checkpoint_seconds
        self._stages = list(stages)
        self._checkpointed_at = time.monotonic()
        self._begin_progress()

    def _begin_progress(self) -> None:
        self._first: tuple[float, int] | None = None
        self._told_at = -math.inf

    def stage(self, name: str) -> None:
        if name not in self._stages:
            self._stages.append(name)
        self._begin_progress()
        self._send(StageBegan(name=name, index=self._stages.index(name) + 1, total=len(self._stages)))

    def progress(self, step: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None or step < self._first[1]:
            self._first = (now, step)
        if now - self._told_at < PROGRESS_SECONDS and step < total:
            return
        self._told_at = now
        began, first = self._first
        eta = (now - began) / (step - first) * (total - step) if step > first else None
        fraction = step / total if total else 1.0
        self._send(Progressed(fraction=fraction, step=step, total_steps=total, eta_seconds=eta))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        self._send(Measured(step=step, values=finite))

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        self._send(Told(event=kind, data=dict(data)))

    def checkpoint(self, path: Path, step: int) -> None:
        self._checkpointed_at = time.monotonic()
        self._send(Checkpointed(path=path.absolute(), step=step))

    def checkpoint_is_due(self) -> bool:
        return self._stop.is_set() or time.monotonic() - self._checkpointed_at >= self._checkpoint_seconds

    def check(self) -> None:
        if self._stop.is_set():
            raise Stopped
