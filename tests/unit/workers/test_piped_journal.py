from multiprocessing import Pipe
from pathlib import Path

import pytest

from workers.journal import Stopped
from workers.lifeline import Lifeline
from workers.pipe import Channel, Checkpointed, Measured, Message, Progressed, StageBegan
from workers.piped_journal import PipedJournal


class Listener:
    """A journal, and what was heard of it."""

    def __init__(self, checkpoint_seconds: float = 1000.0, stages: tuple[str, ...] = ()) -> None:
        here, there = Pipe()
        self.channel = Channel(here)
        self.lifeline = Lifeline(Channel(there))
        self.journal = PipedJournal(self.lifeline, checkpoint_seconds, stages)

    def heard(self) -> list[Message]:
        found = []
        while self.channel.poll(0):
            found.append(self.channel.receive())
        return found


def test_a_stage_is_told_with_its_place_among_all_stages() -> None:
    listener = Listener(stages=("loading", "training"))
    listener.journal.stage("training")
    assert listener.heard() == [StageBegan(name="training", index=2, total=2)]


def test_progress_is_told_twice_a_second_at_most_and_always_at_the_end() -> None:
    listener = Listener()
    for step in range(1, 1001):
        listener.journal.progress(step, 1000)
    told = listener.heard()
    assert len(told) < 20
    assert isinstance(told[-1], Progressed)
    assert (told[-1].step, told[-1].fraction, told[-1].eta_seconds) == (1000, 1.0, 0.0)


def test_metrics_that_are_not_finite_become_null() -> None:
    listener = Listener()
    listener.journal.metrics(3, {"a": float("nan"), "b": 1.5})
    assert listener.heard() == [Measured(step=3, values={"a": None, "b": 1.5})]


def test_a_checkpoint_is_due_by_the_clock_and_told_by_its_absolute_path() -> None:
    listener = Listener(checkpoint_seconds=0.0)
    assert listener.journal.checkpoint_is_due()
    listener.journal.checkpoint(Path("c.pt"), 5)
    assert listener.heard() == [Checkpointed(path=Path.cwd() / "c.pt", step=5)]
    assert not Listener(checkpoint_seconds=1000.0).journal.checkpoint_is_due()


def test_a_request_to_stop_makes_a_checkpoint_due_and_ends_the_computation() -> None:
    listener = Listener()
    listener.journal.check()
    listener.lifeline.stop_requested.set()
    assert listener.journal.checkpoint_is_due()
    with pytest.raises(Stopped):
        listener.journal.check()
