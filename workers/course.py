"""How far a job has come: its stages, what they took, what they made, and the checkpoint that holds all of it.

A checkpoint is one file:

    format     the version of this layout
    choices    what was found out or decided before the first computation, to be used again
    seconds    what each stage has taken so far, over all attempts
    finished   by name, what pieces of work that are complete left behind
    under_way  the name and the state of the piece of work that is not, or None

A resumed job passes through the same stages, and finds their work done.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.contract.reports import StageOutcome
from workers.journal import Journal
from workers.training.checkpoint import load_checkpoint, save_checkpoint

FORMAT = 2
KEPT_CHECKPOINTS = 3  # a reader of the journal may lag behind by one or two


class Course:
    """The progress of one job over all its attempts."""

    def __init__(self, journal: Journal, work_dir: Path, checkpoint: Path | None, choices: Mapping[str, Any]) -> None:
        """Go on from `checkpoint`, and its choices; without one, write down `choices` as the first checkpoint."""
        self.journal, self.work_dir = journal, work_dir
        saved = {} if checkpoint is None else load_checkpoint(checkpoint)
        if saved and saved["format"] != FORMAT:
            text = f"the checkpoint has format {saved['format']}, this version writes {FORMAT}: the job begins anew"
            journal.event("warning", {"text": text})
            saved = {}
        self.choices: dict[str, Any] = saved.get("choices", dict(choices))
        self._seconds: dict[str, float] = saved.get("seconds", {})
        self._finished: dict[str, dict[str, Any]] = saved.get("finished", {})
        self._under_way: tuple[str, dict[str, Any]] | None = saved.get("under_way")
        self._stage, self._began = "loading", time.perf_counter()
        self._num_saved = 0
        if not saved:
            journal.checkpoint(self._write(), 0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The work inside belongs to the named stage."""
        self.journal.stage(name)
        around = self._enter(name)
        try:
            yield
        finally:
            self._enter(around)

    def _enter(self, name: str) -> str:
        """From here on the time is that of stage `name`; return whose it was."""
        self._seconds, self._began = self._seconds_now(), time.perf_counter()
        before, self._stage = self._stage, name
        return before

    def outcomes(self) -> tuple[StageOutcome, ...]:
        """The stages so far, in order, with the seconds they took."""
        return tuple(StageOutcome(name=name, seconds=seconds) for name, seconds in self._seconds_now().items())

    def recall(self, name: str) -> dict[str, Any] | None:
        """What the piece of work `name` left behind, once it is complete."""
        return self._finished.get(name)

    def state_of(self, name: str) -> dict[str, Any] | None:
        """The state of that piece of work in the checkpoint that the job resumes from, if it was under way."""
        return self._under_way[1] if self._under_way is not None and self._under_way[0] == name else None

    def remember(self, name: str, plain: dict[str, Any], step: int) -> None:
        """Keep what a complete piece of work left behind, durably."""
        self._finished[name] = plain
        self._under_way = None
        self.journal.checkpoint(self._write(), step)

    def save(self, name: str, state: dict[str, Any]) -> Path:
        """Write a checkpoint, with the state of the piece of work that is under way, and return its place."""
        self._under_way = (name, state)
        try:
            return self._write()
        finally:
            self._under_way = None  # it may hold a network's own tensors, which change

    def _write(self) -> Path:
        content = {
            "format": FORMAT,
            "choices": self.choices,
            "seconds": self._seconds_now(),
            "finished": self._finished,
            "under_way": self._under_way,
        }
        # A name of its own for each: whoever is still reading the one before must find it as it was.
        self._num_saved += 1
        path = self._file(self._num_saved)
        save_checkpoint(path, content)
        self._file(self._num_saved - KEPT_CHECKPOINTS).unlink(missing_ok=True)
        return path

    def _file(self, number: int) -> Path:
        return self.work_dir / f"checkpoint-{number}.pt"

    def _seconds_now(self) -> dict[str, float]:
        elapsed = time.perf_counter() - self._began
        return {**self._seconds, self._stage: self._seconds.get(self._stage, 0.0) + elapsed}
