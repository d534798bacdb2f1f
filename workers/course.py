"""How far a job has come: its stages, what they took, what they made, and the checkpoint that holds all of it.

A checkpoint is one file:

    format    the version of this layout
    stage     the stage in which it was written
    choices   what was found out or decided before the first computation, to be used again
    seconds   what each stage has taken so far, over all attempts
    finished  by name, the outcomes of trainings that are complete
    training  the state of the training that is under way in that stage, or None

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
from workers.training.outcome import TrainingOutcome

FORMAT = 1
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
        self._under_way: tuple[str, dict[str, Any] | None] = (saved.get("stage", ""), saved.get("training"))
        self._stage, self._began = "loading", time.perf_counter()
        self._num_saved = 0
        if not saved:
            journal.checkpoint(self.save(None), 0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The work inside belongs to the named stage."""
        self.journal.stage(name)
        self._stage, self._began = name, time.perf_counter()
        try:
            yield
        finally:
            self._seconds, self._began = self._seconds_now(), time.perf_counter()

    def outcomes(self) -> tuple[StageOutcome, ...]:
        """The stages so far, in order, with the seconds they took."""
        return tuple(StageOutcome(name=name, seconds=seconds) for name, seconds in self._seconds_now().items())

    def outcome(self, name: str) -> TrainingOutcome | None:
        """What the training `name` left behind, once it is complete."""
        plain = self._finished.get(name)
        return None if plain is None else TrainingOutcome.from_plain(plain)

    def training_state(self) -> dict[str, Any] | None:
        """The state of this stage's training in the checkpoint that the job resumes from, if it was under way."""
        stage, state = self._under_way
        return state if stage == self._stage else None

    def finish(self, name: str, outcome: TrainingOutcome, step: int) -> None:
        """Remember a complete training, durably."""
        self._finished[name] = outcome.plain()
        self._under_way = ("", None)
        self.journal.checkpoint(self.save(None), step)

    def save(self, training: dict[str, Any] | None) -> Path:
        """Write a checkpoint, with the state of the training under way, and return its place."""
        content = {
            "format": FORMAT,
            "stage": self._stage,
            "choices": self.choices,
            "seconds": self._seconds_now(),
            "finished": self._finished,
            "training": training,
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
