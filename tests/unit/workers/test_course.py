from pathlib import Path
from typing import Any

import torch

from tests.unit.training.blobs import Listening, small_network
from workers.course import KEPT_CHECKPOINTS, Course
from workers.training.checkpoint import load_checkpoint, save_checkpoint
from workers.training.outcome import TrainingOutcome, copied_state

CHOICES = {"num_threads": 2}


def course(folder: Path, checkpoint: Path | None = None, choices: dict[str, Any] | None = None) -> Course:
    folder.mkdir(exist_ok=True)
    return Course(Listening(), folder, checkpoint, choices or CHOICES)


def outcome() -> TrainingOutcome:
    state = copied_state(small_network())
    return TrainingOutcome(state, state, 2, 2, 10, stopped_early=False, precision="float32", history=({"epoch": 1},))


def told_checkpoints(made: Course) -> list[tuple[Path, int]]:
    assert isinstance(made.journal, Listening)
    return made.journal.checkpoints


def test_choices_are_written_down_before_anything_is_computed_and_kept_afterwards(tmp_path: Path) -> None:
    first = course(tmp_path / "a")
    [(path, step)] = told_checkpoints(first)
    assert step == 0
    assert course(tmp_path / "b", path, {"num_threads": 8}).choices == CHOICES


def test_a_finished_training_is_found_again(tmp_path: Path) -> None:
    first = course(tmp_path / "a")
    with first.stage("training"):
        assert first.recall("student") is None
        first.remember("student", outcome().plain(), 10)
    path, step = told_checkpoints(first)[-1]
    plain = course(tmp_path / "b", path).recall("student")
    assert step == 10
    assert plain is not None
    again = TrainingOutcome.from_plain(plain)
    assert again.history == outcome().history
    assert all(torch.equal(again.last_state[name], tensor) for name, tensor in outcome().last_state.items())


def test_the_state_of_unfinished_work_is_for_that_work_alone(tmp_path: Path) -> None:
    first = course(tmp_path / "a")
    path = first.save("student", {"step": 3})
    again = course(tmp_path / "b", path)
    assert again.state_of("control") is None
    assert again.state_of("student") == {"step": 3}
    again.remember("student", outcome().plain(), 10)
    assert again.state_of("student") is None


def test_seconds_add_up_over_attempts(tmp_path: Path) -> None:
    first = course(tmp_path / "a")
    with first.stage("training"):
        path = first.save("student", {"step": 3})
    before = load_checkpoint(path)["seconds"]["training"]
    again = course(tmp_path / "b", path)
    with again.stage("training"):
        pass
    after = {stage.name: stage.seconds for stage in again.outcomes()}
    assert after["training"] > before > 0


def test_the_last_checkpoints_are_kept_and_older_ones_removed(tmp_path: Path) -> None:
    made = course(tmp_path / "a")
    with made.stage("training"):
        paths = [made.save("student", {"step": step}) for step in range(6)]
    assert [path.exists() for path in paths] == [False] * (6 - KEPT_CHECKPOINTS) + [True] * KEPT_CHECKPOINTS
    assert load_checkpoint(paths[-2])["under_way"] == ("student", {"step": 4})


def test_a_checkpoint_of_another_layout_is_not_guessed_at(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    save_checkpoint(path, {"format": 0, "finished": "something else"})
    made = course(tmp_path / "a", path)
    assert isinstance(made.journal, Listening)
    assert made.journal.events[0][0] == "warning"
    assert "begins anew" in made.journal.events[0][1]["text"]
    assert made.recall("student") is None
