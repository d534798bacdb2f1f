"""How a computation tells of itself, and how it is told to stop.

Everything that takes long is handed a `Journal`. In a job it speaks to the supervisor over a pipe;
a researcher may pass `Silent()`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Stopped(Exception):
    """The computation was asked to stop; its last checkpoint stands."""


class Journal(Protocol):
    """Stages, progress, metrics, events and checkpoints, in the order in which they happen."""

    def stage(self, name: str) -> None:
        """A named stage of the pipeline begins."""

    def progress(self, step: int, total: int) -> None:
        """`step` of `total` steps of this stage are done. Cheap: call it every step."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Points of series, such as {"validation/accuracy": 0.93}, at a step."""

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Something to tell the user: kind "warning" with {"text"}, kind "log" with {"text"}."""

    def checkpoint(self, path: Path, step: int) -> None:
        """A complete checkpoint lies at `path` (already flushed and renamed into place)."""

    def checkpoint_is_due(self) -> bool:
        """Whether enough wall-clock time has passed since the last checkpoint, or a stop was asked for."""

    def check(self) -> None:
        """Raise Stopped when the computation was asked to stop. Cheap: call it every step."""


class Silent:
    """A journal that nobody reads."""

    def stage(self, name: str) -> None: ...
    def progress(self, step: int, total: int) -> None: ...
    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...
    def event(self, kind: str, data: Mapping[str, Any]) -> None: ...
    def checkpoint(self, path: Path, step: int) -> None: ...
    def check(self) -> None: ...

    def checkpoint_is_due(self) -> bool:
        return False
